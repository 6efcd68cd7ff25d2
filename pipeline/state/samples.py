"""Sample answers of a run: those that an evaluation without a judge wrote, the first few, shortened."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from typing_extensions import TypedDict

from pipeline.state.run import StepState
from pipeline.steps import Step

NUM_SAMPLES = 3  # prompts
MAX_CHARACTERS = 500  # of a prompt and of an answer


class SampleAnswer(TypedDict):
    """A policy's answer to a held-out prompt."""

    policy: str  # the step that trained it
    prompt: str  # its last message, shortened
    answer: str  # shortened
    ended: bool  # by the model, not by max_new_tokens


def is_judged(step: Step) -> bool:
    """Whether a judge scores the answers of an evaluation."""
    return bool(step.keys.get("judge_function") or step.inputs.get("judge_model"))


def samples_of(steps: Sequence[Step], states: Mapping[str, StepState]) -> list[SampleAnswer]:
    """The first answers of every finished evaluation without a judge. Rows that are damaged are left out."""
    return [
        sample
        for step in steps
        if step.stage == "evaluate_policy" and not is_judged(step)
        for sample in read_samples(states[step.name], policy=str(step.keys.get("policy_step") or ""))
    ]


def read_samples(state: StepState, *, policy: str, num: int = NUM_SAMPLES) -> Iterator[SampleAnswer]:
    """The first answers that an evaluation wrote, one for each of `num` prompts. It ends at a row that is damaged."""
    name = state.artifact.outputs.get("answers") if state.artifact else None
    if state.folder is None or name is None:
        return
    try:
        with (state.folder / Path(name).name).open(encoding="utf-8") as file:
            for line in itertools.islice(file, num):
                row = json.loads(line)
                answer = row["candidates"][0]
                yield {
                    "policy": policy,
                    "prompt": _shortened(str(row["prompt"][-1]["content"])),
                    "answer": _shortened(str(answer["text"])),
                    "ended": bool(answer["ended"]),
                }
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
