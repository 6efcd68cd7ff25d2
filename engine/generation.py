"""Sampling answers. One seam: prompts in, answers out, whatever generates them.

The noise of an answer comes from (seed, prompt id, k, position) alone, and batches are formed before they are divided
among processes: any number of processes gives the same answers, another batch size changes rounding at most.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from data_schemas.artifact import write_atomically
from data_schemas.reading import read_prompts
from data_schemas.rows import Prompt
from engine import preemption, timing
from engine.arguments import GenerationArguments
from engine.models import identity_of, load_causal, load_tokenizer
from engine.stage import Stage
from engine.template import encode_prompt

# Shapes: B = answers in a batch, T = prompt tokens (left-padded), V = vocabulary, N = new tokens at most.
log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted: the k-th of its prompt."""

    prompt: Prompt
    k: int
    temperature: float | None = None  # None: the stage's own


@dataclass(frozen=True)
class Answer:
    text: str
    ids: list[int]  # the end token included, where it ended
    ended: bool  # by the end token, not by max_new_tokens


def device_of(use_cpu: bool) -> torch.device:
    """This process's device; a stage that generates holds whole models, outside of ZeRO."""
    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def draw_prompts(
    prompts: Sequence[Prompt], count: int | None, *, seed: int, purpose: str, round: int = 1
) -> list[Prompt]:
    """`count` prompts (None: all) in an order drawn by seed and purpose; each round takes the next ones, then wraps."""
    order = sorted(prompts, key=lambda row: hashlib.sha256(f"{seed}/{purpose}/{row.prompt_id}".encode()).digest())
    if count is None or count >= len(order):
        return order
    start = (max(round, 1) - 1) * count % len(order)
    return (order + order)[start : start + count]


@timing.part("load")
def draw_both_sides(
    train: tuple[list[str], int | None],
    validation: tuple[list[str] | None, int | None],
    *,
    seed: int,
    purpose: str,
    round: int,
) -> list[tuple[str, Prompt]]:
    """Prompts of the round, each with its side ("train", "validation"), from (files, how many) of the two sides."""
    drawn: list[tuple[str, Prompt]] = []
    for side, (files, count) in (("train", train), ("validation", validation)):
        rows = read_prompts(files).rows if files else []
        drawn += [(side, row) for row in draw_prompts(rows, count, seed=seed, purpose=purpose, round=round)]
    return drawn


def noise(seed: str, prompt_id: str, k: int, length: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for one answer, [length]: one for each position."""
    key = hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big"))).random(length)


class _Sample(LogitsProcessor):
    """Leaves one token a row: the one at which the cumulative probability passes the row's uniform number."""

    def __init__(
        self, noise_BN: torch.Tensor, temperature_B1: torch.Tensor, *, num_prompt_tokens: int, top_p: float
    ) -> None:
        self.noise_BN, self.temperature_B1, self.start, self.top_p = noise_BN, temperature_B1, num_prompt_tokens, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        greedy_B1 = self.temperature_B1 == 0
        if greedy_B1.all():
            return scores
        probabilities_BV = torch.softmax(scores.double() / self.temperature_B1.masked_fill(greedy_B1, 1.0), dim=-1)
        if self.top_p < 1:
            sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
            beyond_BV = sorted_BV.cumsum(-1) - sorted_BV >= self.top_p
            probabilities_BV = torch.zeros_like(sorted_BV).scatter(1, order_BV, sorted_BV.masked_fill(beyond_BV, 0))
        cumulative_BV = probabilities_BV.cumsum(-1)
        uniform_B1 = self.noise_BN[:, input_ids.shape[1] - self.start, None] * cumulative_BV[:, -1:]
        chosen_B1 = torch.searchsorted(cumulative_BV, uniform_B1, right=True).clamp(max=scores.shape[1] - 1)
        chosen_B1 = torch.where(greedy_B1, scores.argmax(dim=1, keepdim=True), chosen_B1)
        return torch.full_like(scores, -math.inf).scatter(1, chosen_B1, 0.0)


@timing.part("generate")
def sample(
    stage: Stage,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asks: Sequence[Ask],
    arguments: GenerationArguments,
    *,
    purpose: str,
) -> list[Answer]:
    """One answer for each ask, in order. `purpose` keeps the noise of different uses of one seed apart."""
    encoded = {
        ask.prompt.prompt_id: encode_prompt(tokenizer, ask.prompt.prompt, tools=ask.prompt.tools) for ask in asks
    }
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, encoded.values()), default=0)
    if limit and longest + arguments.max_new_tokens > limit:
        log.warning("prompts of up to %d tokens + max_new_tokens=%d pass the model's %d positions", longest,
                    arguments.max_new_tokens, limit)  # fmt: skip
    end_ids = end_tokens(model, tokenizer)
    seed = f"{arguments.seed}/{purpose}"

    def generate(batch: Sequence[Ask]) -> list[dict[str, Any]]:
        rows = [encoded[ask.prompt.prompt_id] for ask in batch]
        width = max(map(len, rows))
        # Padding must be on the left: generate() continues from the last column.
        ids_BT = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        noise_BN = torch.from_numpy(
            np.stack([noise(seed, ask.prompt.prompt_id, ask.k, arguments.max_new_tokens) for ask in batch])
        )
        temperatures = [arguments.temperature if ask.temperature is None else ask.temperature for ask in batch]
        sampler = _Sample(
            noise_BN.to(model.device),
            torch.tensor(temperatures, dtype=torch.float64, device=model.device)[:, None],
            num_prompt_tokens=width,
            top_p=arguments.top_p,
        )
        with torch.no_grad():
            output = model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids_BT.to(model.device),
                attention_mask=mask_BT.to(model.device),
                logits_processor=LogitsProcessorList([sampler]),
                do_sample=False,
                max_new_tokens=arguments.max_new_tokens,
                eos_token_id=sorted(end_ids),
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = []
        for row in output[:, width:].tolist():
            end = next((position for position, token in enumerate(row) if token in end_ids), None)
            ids = row if end is None else row[: end + 1]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            answers.append({"text": text, "ids": ids, "ended": end is not None})
        return answers

    # Prompts of like length together; the order is part of the step's identity, not of how it is run.
    order = sorted(
        range(len(asks)), key=lambda i: (len(encoded[asks[i].prompt.prompt_id]), asks[i].prompt.prompt_id, asks[i].k)
    )
    ordered = [asks[i] for i in order]
    rows = [(encoded[ask.prompt.prompt_id], ask.prompt.prompt_id, ask.k, ask.temperature) for ask in ordered]
    settings = (arguments.dtype, seed, arguments.temperature, arguments.top_p, arguments.max_new_tokens)
    content = (identity_of(str(model.config.name_or_path)), settings, sorted(end_ids), *rows)
    results = in_batches(stage, name, ordered, generate, size=arguments.generation_batch_size, content=content)
    answers: list[Answer | None] = [None] * len(asks)
    for position, result in zip(order, results, strict=True):
        answers[position] = Answer(**result)
    return [answer for answer in answers if answer is not None]


def sample_in_turn(
    stage: Stage,
    policies: Sequence[str],
    prompts: Sequence[tuple[Prompt, float | None]],
    arguments: GenerationArguments,
    *,
    num_answers: int,
    purpose: str,
) -> list[list[Answer]]:
    """`num_answers` answers of each (prompt, temperature): answer k from policy k, from the first after the last."""
    device = device_of(arguments.use_cpu)
    answers: dict[tuple[int, int], Answer] = {}  # (number of the prompt, k)
    for side, path in enumerate(policies):
        mine = [(place, k) for place in range(len(prompts)) for k in range(side, num_answers, len(policies))]
        asks = [Ask(prompts[place][0], k, prompts[place][1]) for place, k in mine]
        tokenizer = load_tokenizer(path)
        policy = load_causal(path, dtype=arguments.dtype).to(device).eval()  # pyright: ignore[reportArgumentType]
        found = sample(stage, f"answers-{side}", policy, tokenizer, asks, arguments, purpose=purpose)
        answers |= dict(zip(mine, found, strict=True))
        del policy
    return [[answers[place, k] for k in range(num_answers)] for place in range(len(prompts))]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: the template's end of a turn, and the model's own."""
    own: Any = model.generation_config.eos_token_id if model.generation_config else None
    return {
        int(token)
        for token in [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
        if token is not None
    }  # pyright: ignore[reportArgumentType]


def in_batches(
    stage: Stage,
    name: str,
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], list[Result]],
    *,
    size: int,
    content: Iterable[Any],
) -> list[Result]:
    """`work` on batches of `items`, divided among the processes; every process gets all results, in order.

    Results travel as files, not through a collective: a process may take as long as it needs. Each batch is a file of
    its own, and is done once: by an attempt that was killed, of any number of processes, or by one in another folder
    beside this one. `content` is all that makes the results what they are, so a step that failed later on and runs
    again with other keys takes them over.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    digest = hashlib.sha256(str(size).encode())
    for piece in content:  # row by row: all of them in one text would be gigabytes
        digest.update(json.dumps(piece).encode())
    folder = stage.folder / "checkpoints" / f"{name}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    elsewhere = [path for path in stage.folder.parent.glob(f"*/checkpoints/{folder.name}") if path != folder]
    mine, taken = range(rank, len(batches), processes), 0
    started = last = time.monotonic()
    for number, index in enumerate(mine, start=1):
        file, known = f"{index}.json", len(batches[index])
        if _finished(folder / file, known) is not None:
            taken += 1
            continue
        if (folder / file).exists():
            log.warning("%s is not as it was written: its batch is done again", folder / file)
        with preemption.delayed():
            results = next(filter(None, (_finished(path / file, known) for path in elsewhere)), None)
            taken += results is not None
            results = work(batches[index]) if results is None else results
            text = json.dumps(results)
            write_atomically(folder / file, f"{_digest(text)} {text}")
        if time.monotonic() - last > 10:
            last = time.monotonic()
            log.info("%s: %d of %d batches in %.0f s", name, number, len(mine), last - started)
    if taken:
        log.info("%s: %d of %d batches were done already", name, taken, len(mine))
    done: list[Result] = []
    for index, batch in enumerate(batches):
        while (found := _finished(folder / f"{index}.json", len(batch))) is None:  # another process is at it
            time.sleep(0.1)
        done += found
    return done


def _finished(path: Path, number: int) -> list[Any] | None:
    """The results of a batch of so many items; None where the file is not there, or not as it was written."""
    try:
        digest, _, text = path.read_text(encoding="utf-8").partition(" ")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if digest != _digest(text):
        return None
    results: list[Any] = json.loads(text)
    return results if len(results) == number else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def log_prob_sums(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]], *, pad: int) -> list[float]:
    """Sum of log p(answer token) of each (prompt ids, answer ids), in nats, at temperature 1."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids_BT = torch.tensor([prompt + answer + [pad] * (width - len(prompt) - len(answer)) for prompt, answer in rows])
    answer_BT = torch.tensor([[0.0] * len(p) + [1.0] * len(a) + [0.0] * (width - len(p) - len(a)) for p, a in rows])
    mask_BT = torch.tensor([[1] * (len(p) + len(a)) + [0] * (width - len(p) - len(a)) for p, a in rows])
    ids_BT, answer_BT = ids_BT.to(model.device), answer_BT.to(model.device)
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT.to(model.device), use_cache=False).logits
        log_probs_BTV = torch.log_softmax(logits_BTV[:, :-1].float(), dim=-1)
    token_BT = log_probs_BTV.gather(2, ids_BT[:, 1:, None]).squeeze(2)
    return (token_BT * answer_BT[:, 1:]).sum(1).tolist()
