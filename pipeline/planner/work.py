"""What each step computes: rows, tokens and floating point operations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from data_schemas.cost_request import RowSample
from data_schemas.stage_keys import Keys, with_defaults
from pipeline.planner.rows import Rows, RowsOfRun, longest, tokens_of
from pipeline.planner.shapes import Shape
from pipeline.steps import Step

GENERATING = ("paraphrase", "annotate", "rejection_sampling", "evaluate_tasks", "evaluate_policy")
QUESTION_TOKENS = 60  # of what asks for a paraphrase or a translation, beside the text itself
EVALUATIONS = 10  # of a training with the default eval_steps, besides the one before its first step


@dataclass(frozen=True)
class Work:
    """The work of one step on all processes together."""

    rows: float = 0.0  # distinct rows or answers
    tokens: float = 0.0  # that the model reads or writes, with every epoch
    flops: float = 0.0  # of forward and backward passes; recomputed activations are not counted
    hardware_flops: float = 0.0  # with recomputed activations
    updates: float = 0.0  # optimizer steps
    answers: float = 0.0  # that are generated
    new_tokens: float = 0.0  # of these answers
    mean_context: float = 0.0  # tokens that a generated token attends to, mean
    is_assumed: bool = False
    samples: Sequence[RowSample] = field(default_factory=list, repr=False)  # rows that are trained on


def triangle(length: float) -> float:
    """Pairs of a token and one that it attends to in a causal sequence."""
    return length * (length + 1) / 2


def forward_of(shape: Shape, row: RowSample, *, logits: float) -> float:
    """Operations of a forward pass over one row, whose answers share their prompt."""
    visible = triangle(row["shared"]) + sum(length * row["shared"] + triangle(length) for length in row["branches"])
    return shape.forward(tokens=tokens_of(row), logits=logits, visible=visible)


def micro_batch_of(step: Step, keys: Keys) -> int:
    """Rows of a micro-batch; where the recipe gives none, the stage chooses at most 8 that divide its share."""
    share = max(1, keys["global_batch_size"] // step.launch.num_processes)
    given = step.keys.get("per_device_train_batch_size")
    return given or max(size for size in range(1, 9) if share % size == 0)


def checkpoints_activations(keys: Keys) -> bool:
    given = keys.get("activation_checkpointing")
    return bool(keys.get("gradient_checkpointing") if given is None else given)


def work_of(step: Step, rows: RowsOfRun, shape: Shape | None, scorers: Sequence[Shape] = ()) -> Work:
    """The work of a step; none for a stage that only reads, copies or averages.

    `shape` is that of the step's model; None for the stage paraphrase where another machine computes. `scorers` are
    those of the models that score its answers.
    """
    keys = with_defaults(step.stage, step.keys)
    if step.stage == "paraphrase":
        return _paraphrasing(step, keys, rows, shape)
    assert shape is not None
    if step.stage in ("pretrain", "sft", "reward_model", "dpo"):
        return _training(step, keys, rows, shape)
    if step.stage in GENERATING:
        return _generation(step, keys, rows, shape, scorers)
    return _reinforcement(step, keys, rows, shape, scorers) if step.stage == "rl" else Work()


def _training(step: Step, keys: Keys, rows: RowsOfRun, shape: Shape) -> Work:
    train = _as_trained(step, keys, rows.of(step.inputs.get("train_data", []), keys.get("train_data_shares")))
    held_out = _as_trained(step, keys, rows.of(step.inputs.get("eval_data", []), keys.get("eval_data_shares")))
    epochs, updates = _length(keys, train.count)
    # A reward model has one score an answer; the others have the logits of trained tokens.
    has_logits = step.stage != "reward_model"
    forwards = [forward_of(shape, row, logits=row["trained"] if has_logits else 0) for row in train.samples]
    forward, mean_tokens = train.mean(forwards), train.mean([tokens_of(row) for row in train.samples])
    evaluations = 1 + min(EVALUATIONS, updates)
    reference = 1 if step.stage == "dpo" and set(keys["loss_type"] or []) != {"sft"} else 0
    passes = 3 * train.count * epochs + held_out.count * (evaluations + reference) + train.count * reference
    recomputed = train.count * epochs if checkpoints_activations(keys) else 0
    return Work(
        rows=train.count,
        tokens=mean_tokens * (train.count * epochs + held_out.count * evaluations),
        flops=forward * passes,
        hardware_flops=forward * (passes + recomputed),
        updates=updates,
        is_assumed=train.is_assumed,
        samples=train.samples,
    )


def _length(keys: Keys, rows: float) -> tuple[float, float]:
    """Epochs and optimizer steps."""
    of_epoch = max(1, math.ceil(rows / keys["global_batch_size"])) if rows else 0
    if keys["max_steps"] > 0:
        return (keys["max_steps"] / of_epoch if of_epoch else 0), keys["max_steps"]
    return keys["num_train_epochs"], of_epoch * keys["num_train_epochs"]


def _as_trained(step: Step, keys: Keys, rows: Rows) -> Rows:
    """The rows in the form in which the stage trains on them, without those that are too long."""
    if step.stage == "pretrain":
        return _blocks(rows, keys["block_size"])
    samples: list[RowSample] = list(rows.samples)
    if step.stage == "dpo":
        samples = [pair for row in samples for pair in _pairs(row, every=keys.get("ranking_pairs") == "all")]
    limit = keys.get("max_length")
    kept = [row for row in samples if limit is None or longest(row) <= limit]
    if keys.get("share_prompts") is False:
        kept = [_unshared(row) for row in kept]
    return replace(rows, count=rows.count * len(kept) / max(1, len(rows.samples)), samples=kept)


def _pairs(row: RowSample, *, every: bool) -> list[RowSample]:
    """The pairs of a ranking that DPO trains on: all, or its best against its worst answer."""
    lengths = row["branches"]
    chosen = [(a, b) for i, a in enumerate(lengths) for b in lengths[i + 1 :]] if every else [(lengths[0], lengths[-1])]
    return [{"shared": row["shared"], "branches": list(pair), "trained": sum(pair)} for pair in chosen]


def _unshared(row: RowSample) -> RowSample:
    """The answers each with its prompt, padded to one length."""
    return {"shared": 0, "branches": [longest(row)] * len(row["branches"]), "trained": row["trained"]}


def _blocks(documents: Rows, size: int) -> Rows:
    """The blocks of `size` tokens that documents are cut into."""
    mean = documents.mean([tokens_of(row) for row in documents.samples])
    block: RowSample = {"shared": 0, "branches": [], "trained": size}
    for row in documents.samples:  # documents of a block do not see each other
        left = size - sum(block["branches"])
        if left > 0:
            block["branches"].append(min(left, tokens_of(row)))
    return replace(documents, count=documents.count * mean // size, samples=[block] if documents.count else [])


def _generation(step: Step, keys: Keys, rows: RowsOfRun, shape: Shape, scorers: Sequence[Shape]) -> Work:
    prompts = [rows.prompts(step, side) for side in ("train", "validation")]
    count = sum(side.count for side in prompts)
    lengths = rows.answer_lengths(keys["max_new_tokens"])
    new, prompt = sum(lengths) / len(lengths), prompts[0].mean([longest(row) for row in prompts[0].samples])
    answers = count * keys.get("num_answers", 1)
    prefill = shape.forward(tokens=prompt, logits=1, visible=triangle(prompt))
    decode = _decoding(shape, prompt, new)
    flops = count * prefill + answers * (decode + _scoring(scorers, prompt + new))
    return Work(
        rows=count,
        tokens=count * prompt + answers * new,
        flops=flops,
        hardware_flops=flops,
        answers=answers,
        new_tokens=answers * new,
        mean_context=prompt + new / 2,
        is_assumed=step.name not in rows.finished and any(side.is_assumed for side in prompts),
    )


def _paraphrasing(step: Step, keys: Keys, rows: RowsOfRun, shape: Shape | None) -> Work:
    """Texts as long as their prompts. Paraphrases of a prompt share their question; a back-translation takes two."""
    prompts = rows.of(step.inputs["prompts"])
    lengths = [longest(row) for row in prompts.samples]
    question = prompts.mean(lengths) + QUESTION_TOKENS
    new = prompts.mean([min(length, keys["max_new_tokens"]) for length in lengths])
    num_translations = 2 * len(keys["back_translations"] or [])
    questions = prompts.count * (min(1, keys["num_paraphrases"]) + num_translations)
    answers = prompts.count * (keys["num_paraphrases"] + num_translations)
    flops = 0.0
    if shape is not None:
        prefill = shape.forward(tokens=question, logits=1, visible=triangle(question))
        flops = questions * prefill + answers * _decoding(shape, question, new)
    return Work(
        rows=prompts.count,
        tokens=questions * question + answers * new,
        flops=flops,
        hardware_flops=flops,
        answers=answers,
        new_tokens=answers * new,
        mean_context=question + new / 2,
        is_assumed=prompts.is_assumed,
    )


def _scoring(scorers: Sequence[Shape], tokens: float) -> float:
    """Operations of scoring an answer of so many tokens, its prompt included, by each of the models."""
    return sum(scorer.forward(tokens=tokens, logits=0, visible=triangle(tokens)) for scorer in scorers)


def _decoding(shape: Shape, prompt: float, new: float) -> float:
    """Operations of writing so many new tokens behind a prompt."""
    return shape.forward(tokens=new, logits=new, visible=new * prompt + triangle(new))


def _reinforcement(step: Step, keys: Keys, rows: RowsOfRun, shape: Shape, scorers: Sequence[Shape]) -> Work:
    """Answers of the policy, and a training step on them: global_batch_size counts answers."""
    prompts = rows.of(step.inputs.get("train_data", []))
    lengths = rows.answer_lengths(keys["max_completion_length"])
    new, prompt = sum(lengths) / len(lengths), prompts.mean([longest(row) for row in prompts.samples])
    epochs, updates = _length(keys, prompts.count * keys["num_generations"])
    answers = updates * keys["global_batch_size"]
    forward = shape.forward(tokens=prompt + new, logits=new, visible=triangle(prompt + new))
    scored = _scoring(scorers, prompt + new)
    flops = answers * (forward * (1 + 3 + 1) + scored)  # generated, trained on, read by the reference, and scored
    sample: RowSample = {"shared": 0, "branches": [round(prompt + max(lengths))], "trained": max(lengths)}
    return Work(
        rows=prompts.count * epochs,
        tokens=answers * (prompt + new),
        flops=flops,
        hardware_flops=flops + (answers * forward if checkpoints_activations(keys) else 0),
        updates=updates,
        answers=answers,
        new_tokens=answers * new,
        mean_context=prompt + new / 2,
        is_assumed=prompts.is_assumed,
        samples=[sample] if prompts.count else [],
    )
