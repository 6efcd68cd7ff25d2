"""The models and rows of the GPU benchmark: folders without weights, and random token ids of realistic lengths.

A row's text consists of the words w4, w5, … of a tokenizer with one word a token, so it has exactly as many tokens as
asked for, and their ids are spread over the vocabulary. Lengths are the quantiles of a log-normal distribution, so that
a few rows have the shape of a large set. A set is described by the median of its prompts and of its answers:

- capybara: long prompts of several turns; a sequence of 1,160 tokens, 1.59 times as many in the prompt as in the answer
- ultrafeedback: short prompts and long answers; a sequence of 409 tokens, 0.42 times as many in the prompt

which are the medians that the paper on shared prefixes (arXiv 2410.20305) measured its speeds on.
"""

import json
import math
import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_schemas.reading import write_rows
from data_schemas.rows import Conversation, PreferencePair

SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPREAD = 0.6  # standard deviation of the logarithm of a length
NUM_HELD_OUT = 2

MODELS: dict[str, dict[str, Any]] = {  # Llama 3.1 8B and Llama 3.2 1B; `tiny` is for a CPU
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class Lengths:
    """Medians in tokens; no length is over `longest`."""

    prompt: int
    answer: int
    longest: int = 4096

    def quantile(self, median: int, share: float) -> int:
        """The length that `share` of the rows stay below."""
        drawn = median * math.exp(SPREAD * statistics.NormalDist().inv_cdf(share))
        return max(2, min(round(drawn), self.longest))


LENGTHS = {
    "capybara": Lengths(prompt=712, answer=448),
    "ultrafeedback": Lengths(prompt=121, answer=288),
    "tiny": Lengths(prompt=24, answer=12, longest=64),
}


def write_model(folder: Path, name: str) -> None:
    """Writes the configuration of a model and its tokenizer, without weights."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    size = MODELS[name]["vocab_size"]
    vocabulary = {word: number for number, word in enumerate(SPECIAL)}
    vocabulary |= {f"w{number}": number for number in range(len(SPECIAL), size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    words.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        **MODELS[name],
        max_position_embeddings=131072,
        rope_theta=500000.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_training_rows(folder: Path, *, lengths: str, number: int, vocabulary: int) -> dict[str, float]:
    """Writes `number` pairs, as many dialogs, and held-out rows of both. Returns mean lengths, in tokens.

    Pairs are in the order of their lengths: a trainer that takes them in turn has the batches of length-grouped
    sampling, the best that padding can have. Of the dialogs, a long one is followed by a short one, so that any even
    number of them has about the same number of tokens.
    """
    generator, sizes = random.Random(lengths), LENGTHS[lengths]
    shares = [(index + 0.5) / number for index in range(number)]
    # Each of the three lengths has the same distribution, in another order.
    columns = [
        [sizes.quantile(median, share) for share in generator.sample(shares, number)]
        for median in (sizes.prompt, sizes.answer, sizes.answer)
    ]
    triples = sorted(zip(*columns, strict=True), key=lambda row: -(row[0] + max(row[1:])))
    held_out = [(sizes.quantile(sizes.prompt, 0.2), sizes.quantile(sizes.answer, 0.2), 4)] * NUM_HELD_OUT

    def text(count: int) -> str:
        return " ".join(f"w{generator.randrange(len(SPECIAL), vocabulary)}" for _ in range(max(1, count)))

    def turn(role: str, count: int) -> dict[str, str]:
        return {"role": role, "content": text(count)}

    pairs, dialogs = [], []
    for prompt, chosen, rejected in [*triples, *held_out]:
        # The template adds two tokens a turn, and one before each answer.
        asked = [turn("user", prompt - 3)]
        answers = [[turn("assistant", count - 1)] for count in (chosen, rejected)]
        pairs.append(PreferencePair.model_validate({"prompt": asked, "chosen": answers[0], "rejected": answers[1]}))
        dialogs.append(Conversation.model_validate({"messages": [*asked, *answers[0]]}))
    folder.mkdir(parents=True, exist_ok=True)
    by_length = sorted(range(number), key=lambda index: -sum(triples[index][:2]))
    in_turn = [index for both in zip(by_length, by_length[::-1], strict=True) for index in both][:number]
    write_rows(folder / "pairs.jsonl", pairs[:number])
    write_rows(folder / "dialogs.jsonl", [dialogs[index] for index in in_turn])
    write_rows(folder / "held_out.jsonl", pairs[number:])
    write_rows(folder / "held_out_dialogs.jsonl", dialogs[number:])
    means = [statistics.fmean(column) for column in zip(*triples, strict=True)]
    return dict(zip(("prompt", "chosen", "rejected"), means, strict=True))


def counts_of_rows(path: Path, base: str) -> dict[str, dict[str, int]]:
    """Own tokens, logits and visible pairs of tokens of all rows, as `flops.Counts`, by side.

    `dpo` reads the logits of its answers, `reward` none, `sft` those of the answer in the dialog of each pair.
    """
    from benchmarks.speed.flops import Counts, counts_of, triangle
    from data_schemas.reading import read_rows
    from engine.models.loading import load_tokenizer
    from stages import dpo, sft

    tokenizer = load_tokenizer(base)
    pair, _ = dpo.encoder(tokenizer, dpo.DPOArguments(train_data=[], mask_formatting=False))
    dialog, _ = sft.encoder(tokenizer, sft.SFTArguments(train_data=[]))
    totals = {side: Counts(0, 0, 0) for side in ("dpo", "reward", "sft")}

    def add(side: str, counts: Counts) -> None:
        totals[side] = Counts(*map(sum, zip(totals[side], counts, strict=True)))

    for row in read_rows(path / "pairs.jsonl", PreferencePair):
        (tokens,) = pair(row)
        both = [tokens.prompt_ids + tokens.chosen_ids, tokens.prompt_ids + tokens.rejected_ids]
        add("dpo", counts_of(*both, logits=len(tokens.chosen_ids) + len(tokens.rejected_ids)))
        add("reward", counts_of(*both, logits=0))
    for row in read_rows(path / "dialogs.jsonl", Conversation):
        (encoded,) = dialog(row)
        length = len(encoded.input_ids)
        add("sft", Counts(length, sum(label != -100 for label in encoded.labels), triangle(length)))
    return {side: counts._asdict() for side, counts in totals.items()}


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Writes the models and the rows of a job. Returns the rows' lengths and counts."""
    root, facts = Path(job["root"]), {}
    for name in job["models"]:
        write_model(root / name, name)
    for name, number in job["rows"].items():
        model = job["models"][0]
        means = write_training_rows(root / name, lengths=name, number=number, vocabulary=MODELS[model]["vocab_size"])
        facts[name] = {"rows": number, "lengths": means, "counts": counts_of_rows(root / name, str(root / model))}
    (root / "facts.json").write_text(json.dumps(facts))
    return {"facts": facts}
