"""The answers of a run's evaluations: their distributions, how often one policy wins over another, and texts side by
side."""

import difflib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_PROMPTS_READ = 4_000  # of an evaluation; distributions and wins of a larger one are of its first prompts
MAX_CHARACTERS = 1_200  # of an answer or a prompt that is shown
MAX_SHOWN = 60  # prompts with their answers side by side
MAX_SHOWN_CHARACTERS = 150_000  # of all these texts together


@dataclass(frozen=True)
class PromptAnswers:
    """A policy's answers to one prompt. The texts are of the prompt and of the first answer."""

    earlier: str  # the messages before the prompt's last one, a line each; empty where there are none
    prompt: str  # its last message
    text: str
    ended: bool
    scores: Sequence[float | None]  # of the judge, one for each answer
    proxies: Sequence[float | None]  # of the reward model that the round optimised
    lengths: Sequence[int]  # tokens


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation has written about its policy: prompt id -> answers."""

    policy: str
    file: str  # relative to the run's folder
    prompts: Mapping[str, PromptAnswers]
    problem: str = ""  # why there is nothing, or less than everything

    @property
    def scores(self) -> list[float]:
        return [score for answers in self.prompts.values() for score in answers.scores if score is not None]

    @property
    def proxies(self) -> list[float]:
        return [score for answers in self.prompts.values() for score in answers.proxies if score is not None]

    @property
    def lengths(self) -> list[float]:
        return [float(length) for answers in self.prompts.values() for length in answers.lengths]


def read_evaluation(folder: Path, policy: str, outputs: Mapping[str, str]) -> Evaluated:
    """Reads the answers of a finished evaluation, and the proxy's scores where it has them."""
    name = outputs.get("answers", "answers.jsonl")
    path = folder / Path(name).name
    prompts: dict[str, PromptAnswers] = {}
    try:
        proxies = _proxies(folder, outputs)
        with path.open(encoding="utf-8") as file:
            for line in itertools.islice(file, MAX_PROMPTS_READ):
                row = json.loads(line)
                prompts[str(row["prompt_id"])] = _answers_of(row, proxies)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{path.name} could not be read to its end ({type(error).__name__}: {error})"
        return Evaluated(policy, f"{folder.name}/{path.name}", prompts, problem)
    return Evaluated(policy, f"{folder.name}/{path.name}", prompts)


def _proxies(folder: Path, outputs: Mapping[str, str]) -> Iterator[float | None]:
    """The proxy's scores, in the order of prompts and answers; None for ever where there are none."""
    if "proxy_scores" not in outputs:
        return itertools.repeat(None)
    values = json.loads((folder / Path(outputs["proxy_scores"]).name).read_text(encoding="utf-8"))
    return itertools.chain((_finite(value) for value in values), itertools.repeat(None))


def _answers_of(row: Mapping[str, list[Mapping[str, object]]], proxies: Iterator[float | None]) -> PromptAnswers:
    candidates, messages = row["candidates"], row["prompt"]
    first = candidates[0]
    return PromptAnswers(
        earlier=shortened("\n".join(f"{message['role']}: {message['content']}" for message in messages[:-1])),
        prompt=shortened(str(messages[-1]["content"])),
        text=shortened(str(first["text"])),
        ended=bool(first["ended"]),
        scores=[_finite(answer.get("score")) for answer in candidates],
        proxies=[next(proxies) for _ in candidates],
        lengths=[int(answer["num_tokens"]) for answer in candidates],  # pyright: ignore[reportArgumentType]
    )


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def shortened(text: str) -> str:
    """The text, cut after MAX_CHARACTERS with the number of characters that are left out."""
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]}… ({len(text) - MAX_CHARACTERS:,} more characters)"


def win_rate(policy: Evaluated, other: Evaluated) -> float | None:
    """The share of answers that the judge scores above the other policy's answer with the same prompt and k; ties count
    half, as in the win rates of an evaluation. None where they have no scored answer in common."""
    wins = [
        float(score > other_score) + 0.5 * (score == other_score)
        for prompt, answers in policy.prompts.items()
        if prompt in other.prompts
        for score, other_score in zip(answers.scores, other.prompts[prompt].scores, strict=False)
        if score is not None and other_score is not None
    ]
    return sum(wins) / len(wins) if wins else None


@dataclass(frozen=True)
class SideBySide:
    """The answers of every policy to one prompt."""

    earlier: str
    prompt: str
    change: float | None  # of the mean score from the first policy to the last; None where one is not scored
    answers: Sequence[tuple[str, PromptAnswers]]  # policy -> its answers


def side_by_side(evaluations: Sequence[Evaluated]) -> list[SideBySide]:
    """Prompts that every policy has answered: those whose score rose most, those whose score fell most, and others in
    the order of their ids, which are hashes, in turn, as many as MAX_SHOWN and MAX_SHOWN_CHARACTERS have room for."""
    if not evaluations:
        return []
    common = sorted(set.intersection(*(set(one.prompts) for one in evaluations)))
    compared = {prompt: _compared(prompt, evaluations) for prompt in common}
    changes = {prompt: compared[prompt].change or 0.0 for prompt in common}
    by_change = sorted(common, key=changes.__getitem__)
    gained = [prompt for prompt in reversed(by_change) if changes[prompt] > 0]
    lost = [prompt for prompt in by_change if changes[prompt] < 0]
    chosen: list[SideBySide] = []
    room, seen = MAX_SHOWN_CHARACTERS, set[str]()
    for prompt in (prompt for turn in itertools.zip_longest(gained, lost, common) for prompt in turn if prompt):
        if prompt in seen:
            continue
        seen.add(prompt)
        one = compared[prompt]
        room -= len(one.earlier) + len(one.prompt) + sum(len(answers.text) for _, answers in one.answers)
        if len(chosen) == MAX_SHOWN or (room < 0 and chosen):
            break
        chosen.append(compared[prompt])
    return chosen


def _compared(prompt: str, evaluations: Sequence[Evaluated]) -> SideBySide:
    answers = [(one.policy, one.prompts[prompt]) for one in evaluations]
    first, last = mean(answers[0][1].scores), mean(answers[-1][1].scores)
    change = None if first is None or last is None else last - first
    return SideBySide(answers[0][1].earlier, answers[0][1].prompt, change, answers)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def marked_words(text: str, before: str) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether its words are not in `before` at this place."""
    words, words_before = text.split(" "), before.split(" ")
    pieces: list[tuple[str, bool]] = []
    for operation, _, _, start, end in difflib.SequenceMatcher(None, words_before, words, autojunk=False).get_opcodes():
        if start < end:
            pieces.append((" ".join(words[start:end]), operation != "equal"))
    return pieces
