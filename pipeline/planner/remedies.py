"""The nearest change that makes a step fit: smaller batches before checkpointing, ZeRO, offload and adapters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from data_schemas.stage_keys import Keys, stages, with_defaults
from pipeline.planner.devices import GIB
from pipeline.planner.estimate import Planner, RunEstimate, StepEstimate
from pipeline.planner.memory import needed
from pipeline.planner.work import checkpoints_activations, micro_batch_of
from pipeline.recipe.sections import Launch
from pipeline.steps import Step


@dataclass(frozen=True)
class Remedy:
    """A change of the recipe, and the bytes that the step then needs."""

    text: str  # as in `dpo: per_device_train_batch_size: 1`
    needed: float


@dataclass(frozen=True)
class _Change:
    text: str
    keys: Keys
    profile: str | None = None


def remedies_of(planner: Planner, estimate: RunEstimate) -> dict[str, Remedy | None]:
    """For each step that does not fit, the nearest change that does, or None where none does.

    First each change alone, then the first two together, and so on.
    """
    return {step.step.name: _remedy(planner, step) for step in estimate.to_run if step.fits is False}


def refusals(estimate: RunEstimate, remedies: Mapping[str, Remedy | None]) -> list[str]:
    """A sentence for each step that does not fit; those of which the same is true, as in each round, share one."""
    alike: dict[tuple[str, Remedy | None], list[StepEstimate]] = {}
    for step in estimate.to_run:
        if step.fits is False:
            alike.setdefault((_need(step), remedies.get(step.step.name)), []).append(step)
    return [_does_not_fit(steps, need, remedy) for (need, remedy), steps in alike.items()]


def _need(estimate: StepEstimate) -> str:
    assert estimate.needed is not None and estimate.device is not None
    room = f"{estimate.device.name} has room for {estimate.device.usable / GIB:.1f} GiB"
    return f"{_least(estimate)}{estimate.needed / GIB:.1f} GiB, and {room}"


def _least(estimate: StepEstimate) -> str:
    return "" if estimate.memory is not None and estimate.memory.is_probed else "at least "


def _does_not_fit(steps: Sequence[StepEstimate], need: str, remedy: Remedy | None) -> str:
    """What the steps need, what there is, and what to change."""
    first, *others = [step.step.name for step in steps]
    verb = f"and {len(others)} more {'step' if len(others) == 1 else 'steps'} need" if others else "needs"
    change = "no change of batch, checkpointing, ZeRO, offload or LoRA makes it fit"
    if remedy is not None:
        change = f"the nearest change that fits is {remedy.text}, with {_least(steps[0])}{remedy.needed / GIB:.1f} GiB"
    return f"{first} {verb} {need}; {change}"


def _remedy(planner: Planner, estimate: StepEstimate) -> Remedy | None:
    changes = list(_changes(estimate.step))
    together = [changes[:count] for count in range(2, len(changes) + 1)]
    for chosen in [*([change] for change in changes), *together]:
        step = estimate.step
        for change in chosen:
            step = _changed(step, change)
        bytes_needed = _needed(planner, estimate, step)
        if bytes_needed is not None and bytes_needed <= estimate.device.usable:  # pyright: ignore[reportOptionalMemberAccess]
            return Remedy(_described(chosen, step), bytes_needed)
    return None


def _described(chosen: list[_Change], step: Step) -> str:
    profile = f"launch: {{profile: {step.launch.profile}}}" if any(change.profile for change in chosen) else ""
    texts = [change.text for change in chosen if not change.profile] + ([profile] if profile else [])
    return f"{step.section}: {{{', '.join(texts)}}}"


def _changes(step: Step) -> Iterator[_Change]:
    keys = with_defaults(step.stage, step.keys)
    if stages()[step.stage].traits.kind == "generates":
        if keys["dtype"] not in ("bfloat16", "float16"):
            yield _Change("dtype: bfloat16", {"dtype": "bfloat16"})
        for batch in (8, 1):
            if keys["generation_batch_size"] > batch:
                yield _Change(f"generation_batch_size: {batch}", {"generation_batch_size": batch})
        if step.launch.num_processes > 1 and step.launch.profile != "zero3":
            yield _Change("launch: {profile: zero3}", {}, "zero3")
        return
    if micro_batch_of(step, keys) > 1:
        yield _Change("per_device_train_batch_size: 1", {"per_device_train_batch_size": 1})
    if not checkpoints_activations(keys):
        yield _Change("activation_checkpointing: true", {"activation_checkpointing": True})
    if step.launch.device == "gpu":
        order = ("single", "ddp", "zero1", "zero2", "zero3", "zero3_offload")
        for profile in order[order.index(step.launch.profile) + 1 :]:
            if profile.startswith("zero") and (step.launch.num_processes > 1 or profile == "zero3_offload"):
                yield _Change(f"launch: {{profile: {profile}}}", {}, profile)
    if not keys.get("use_peft"):
        yield _Change("use_peft: true", {"use_peft": True})
    if not keys.get("load_in_4bit") and step.launch.device == "gpu" and "load_in_4bit" in keys:
        yield _Change("use_peft: true, load_in_4bit: true", {"use_peft": True, "load_in_4bit": True}, None)


def _changed(step: Step, change: _Change) -> Step:
    launch: Launch = step.launch
    if change.profile:
        launch = Launch(**{**launch.model_dump(exclude_unset=True), "profile": change.profile})
    return replace(step, keys={**step.keys, **change.keys}, launch=launch)


def _needed(planner: Planner, estimate: StepEstimate, step: Step) -> float | None:
    """The bytes that the changed step needs; None where the memory of its host is too small."""
    assert estimate.device is not None
    memory = planner.memory(step, planner.work(step))
    assert memory is not None
    return needed(memory, step, estimate.device)
