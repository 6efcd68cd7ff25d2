"""Synthetic chat rows in which it is known what curation has to find.

Of all rows 5 % repeat another one but for case and marks, 5 % repeat one with another end of the answer, at known
similarities from 0.6 to 0.95, 1 % have most of an evaluation prompt in their prompt, and 2 % are German. The others are
sentences of frequent English words and of invented ones, 150 words on average. Each row is a function of its number.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARES = {"exact": 0.05, "near": 0.05, "contaminated": 0.01, "german": 0.02}
NUM_EVALUATION_PROMPTS = 2_000
PROMPT_WORDS, ANSWER_WORDS = (10, 50), (40, 200)  # fewest and most; 150 together on average
SENTENCE = 12  # words
SHINGLE = 5  # words
ENGLISH = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not"
    " what all were we when your can said there use an each which she do how their if will up other about out many then"
    " them these so some her would make like him into time has look two more write go see number no way could people my"
    " than first water been call who oil its now find long down day did get come made may part over new sound take only"
    " little work know place year live me back give most very after thing our just name good sentence man think say"
    " great where help through much before line right too mean old any same tell boy follow came want show also around"
).split()
GERMAN = (
    "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er dass"
    " sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur aber vor zur bis mehr durch"
    " man sein wurde wenn können alle wieder meine Zeit gegen vom ganz einzelne wo muss ohne eines kann schon immer"
).split()
SYLLABLES = "ba ce di fo gu la me ni po ru sa te vi wo ka le mi no pu ra se ti vo za".split()


def _invented() -> list[str]:
    source = np.random.default_rng(7)
    return sorted({"".join(source.choice(SYLLABLES, size=size)) for size in source.integers(2, 5, size=24_000)})


VOCABULARY = [*ENGLISH, *_invented()]
ENGLISH_SHARE = 0.75  # of the words; both kinds by Zipf's law, in which the n-th word is n times rarer than the first
_WEIGHTS = [1 / np.arange(5, 5 + number) for number in (len(ENGLISH), len(VOCABULARY) - len(ENGLISH))]
_CUMULATED = np.cumsum(
    np.concatenate(
        [share * part / part.sum() for share, part in zip((ENGLISH_SHARE, 1 - ENGLISH_SHARE), _WEIGHTS, strict=True)]
    )
)


@dataclass(frozen=True)
class Planted:
    """What was planted at a line."""

    line: int  # from 1
    kind: str  # base, exact, near, contaminated or german
    partner: int = 0  # the line that it repeats
    similarity: float = 0.0  # the lower one of the texts' and the answers' Jaccard similarities


def write_rows(folder: Path, num_rows: int, seed: int = 1) -> tuple[Path, Path, list[Planted]]:
    """Writes the rows and the evaluation prompts, and returns their paths and what was planted."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [" ".join(_words(seed, -1 - number, 60)) + "?" for number in range(NUM_EVALUATION_PROMPTS)]
    evaluation = folder / "evaluation_prompts.jsonl"
    evaluation.write_text("".join(json.dumps({"prompt": _messages(prompt)}) + "\n" for prompt in prompts))
    numbers = np.random.default_rng(seed).permutation(num_rows)
    lines = np.empty(num_rows, dtype=np.int64)
    lines[numbers] = np.arange(1, num_rows + 1)
    kinds = list(_kinds(num_rows))
    planted: list[Planted] = []
    rows = folder / "instructions.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for line, number in enumerate(map(int, numbers), 1):
            kind, partner = kinds[number]
            prompt, answer, similarity = _row(seed, number, kind, partner, prompts)
            planted.append(Planted(line, kind, int(lines[partner]) if partner >= 0 else 0, similarity))
            messages = [*_messages(prompt), {"role": "assistant", "content": answer}]
            row = {"messages": messages, "group_id": f"{number:016x}", "source": f"source-{number % 4}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return rows, evaluation, planted


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _kinds(num_rows: int) -> Iterator[tuple[str, int]]:
    """The kind of each row, and the number of the row that it repeats or -1: each base row is repeated once at most."""
    counts = {kind: int(share * num_rows) for kind, share in SHARES.items()}
    num_base = num_rows - sum(counts.values())
    yield from (("base", -1) for _ in range(num_base))
    repeated = iter(range(num_base))
    for kind, count in counts.items():
        yield from ((kind, next(repeated) if kind in ("exact", "near") else -1) for _ in range(count))


def _row(seed: int, number: int, kind: str, partner: int, prompts: list[str]) -> tuple[str, str, float]:
    source = np.random.default_rng((seed, 1, number))
    if kind == "german":
        words = [GERMAN[place] for place in source.integers(0, len(GERMAN), size=150)]
        return _sentences(words[:30]), _sentences(words[30:]), 0.0
    prompt, answer = _base(seed, partner if partner >= 0 else number)
    if kind == "exact":
        return _sentences(prompt).upper(), _sentences(answer).replace(".", "!"), 1.0
    if kind == "near":
        wanted = source.uniform(0.6, 0.97)
        num_shared = int((len(answer) - 4) * 2 * wanted / (1 + wanted)) + 4
        changed = answer[:num_shared] + _words(seed, number, len(answer) - num_shared)
        similarity = min(_jaccard(answer, changed), _jaccard(prompt + answer, prompt + changed))
        return _sentences(prompt), _sentences(changed), similarity
    if kind == "contaminated":
        evaluated = prompts[number % len(prompts)].split()
        prompt = [*prompt[:5], *evaluated[: int(0.7 * len(evaluated))], *prompt[5:10]]
        return " ".join(prompt), _sentences(answer), 0.0
    return _sentences(prompt), _sentences(answer), 0.0


def _base(seed: int, number: int) -> tuple[list[str], list[str]]:
    source = np.random.default_rng((seed, 2, number))
    sizes = (int(source.integers(*PROMPT_WORDS, endpoint=True)), int(source.integers(*ANSWER_WORDS, endpoint=True)))
    words = _words(seed, number, sum(sizes))
    return words[: sizes[0]], words[sizes[0] :]


def _words(seed: int, number: int, count: int) -> list[str]:
    source = np.random.default_rng((seed, 3, number % (1 << 62)))
    return [VOCABULARY[place] for place in np.searchsorted(_CUMULATED[:-1], source.random(count))]


def _sentences(words: list[str]) -> str:
    parts = (words[start : start + SENTENCE] for start in range(0, len(words), SENTENCE))
    return " ".join(" ".join([part[0].capitalize(), *part[1:]]) + "." for part in parts)


def _jaccard(one: list[str], other: list[str]) -> float:
    shingles = [set(zip(*(words[place:] for place in range(SHINGLE)), strict=False)) for words in (one, other)]
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
