"""Lets the candidates of an assessment answer, and measures what it takes: seconds, tokens, money.

The latency is the median time of a few answers that are asked for one at a time; the cost of a model that runs here
follows from the time of all answers together, which are generated in batches.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_schemas.assessment import Candidate
from data_schemas.endpoints import Endpoint
from data_schemas.files import read_json, write_atomically
from data_schemas.reading import ONE_FILE_ADVICE, read_conversations
from data_schemas.rows import Message, Prompt
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer, Engine, Policy, SampleRequest, SamplingSettings
from engine.sampling.endpoint_engine import EndpointEngine
from engine.sampling.prompts import with_system_prompt
from engine.sampling.sampler import engine_of

MEASURED = "measured.json"  # in the folder of unfinished work: what the candidates so far took
NUM_TIMED = 3  # answers that are asked for one at a time


@dataclass(frozen=True)
class Measures:
    """What a candidate's answers take; None where it is not known."""

    latency: float | None  # seconds of one answer that is asked for alone, median
    seconds: float | None  # of an answer, when all are asked for together
    money: float | None  # of an answer, in the currency of the prices


@dataclass(frozen=True)
class _Notes:
    """What was measured of each candidate, and which ones have begun, in a file."""

    file: Path

    def has_begun(self, name: str) -> bool:
        """Whether an earlier attempt has begun with the candidate; from now on one has."""
        known = read_json(self.file) or {}
        write_atomically(self.file, json.dumps({name: None} | known))
        return name in known

    def keep(self, name: str, measures: Measures) -> Measures:
        """The measures of the attempt that began first, if it has finished, else these."""
        known = read_json(self.file) or {}
        if known.get(name):
            return Measures(**known[name])
        write_atomically(self.file, json.dumps(known | {name: asdict(measures)}))
        return measures


def asked_of(candidate: Candidate, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts as the candidate gets them: under its system prompt, after its examples. Raises UserError for a file
    of examples that cannot be read."""
    turns: list[Message] = []
    if candidate.examples:
        dialogs = read_conversations(candidate.examples, advice=ONE_FILE_ADVICE).rows[: candidate.num_examples]
        turns = [message for dialog in dialogs for message in dialog.messages if message.role != "system"]
    return [_asked(prompt, candidate.system, turns) for prompt in prompts]


def _asked(prompt: Prompt, system: str | None, turns: Sequence[Message]) -> Prompt:
    given = with_system_prompt(prompt, system) if system else prompt
    if not turns:
        return given
    num_first = int(given.prompt[0].role == "system")
    messages = [*given.prompt[:num_first], *turns, *given.prompt[num_first:]]
    return Prompt(prompt=messages, tools=given.tools, group_id=given.group_id)


def answer(
    stage: Stage,
    policy: Policy,
    prompts: Sequence[Prompt],
    asked: Sequence[Prompt],
    settings: SamplingSettings,
    *,
    gpu_hour_price: float | None,
) -> tuple[list[Answer], Measures]:
    """A candidate's answers to the prompts, which it gets as `asked`, and what they take.

    What is measured once is kept, for an assessment that is interrupted and continued. Raises UserError and StageError
    as the engine does.
    """
    requests = [SampleRequest(prompt, 0) for prompt in asked]
    name, notes = policy.name, _Notes(stage.folder / MEASURED)
    was_interrupted = notes.has_begun(name)  # then a part of the answers is there already, and takes no time
    engine = None if policy.endpoint else engine_of(stage, "answers", policy, settings)
    latency = None if was_interrupted else _latency(stage, policy, requests, settings, engine)
    engine = engine or engine_of(stage, "answers", policy, settings)  # it knows the answers that are paid for by now
    started = time.monotonic()
    answers = engine.sample(requests)
    seconds = None if was_interrupted else (time.monotonic() - started) / len(answers)
    measures = Measures(latency, seconds, _money(engine, policy.endpoint, requests, seconds, gpu_hour_price))
    measures = notes.keep(name, measures)
    named = [replace(answer, prompt=prompt, policy=name) for answer, prompt in zip(answers, prompts, strict=True)]
    return named, measures


def _latency(
    stage: Stage,
    policy: Policy,
    requests: Sequence[SampleRequest],
    settings: SamplingSettings,
    loaded: Engine | None,
) -> float | None:
    """The median seconds of the last prompts, the first of which is not timed: it takes longer after loading. An
    endpoint is asked by a new engine each time."""
    seconds: list[float] = []
    for number, request in enumerate(requests[-NUM_TIMED - 1 :]):
        engine = loaded or engine_of(stage, "alone", policy, settings)
        started = time.monotonic()
        engine.sample([request])
        seconds += [time.monotonic() - started] if number else []
    return statistics.median(seconds) if seconds else None


def _money(
    engine: Engine,
    endpoint: Endpoint | None,
    requests: Sequence[SampleRequest],
    seconds: float | None,
    gpu_hour_price: float | None,
) -> float | None:
    """Of one answer: by the tokens that the endpoint has counted, or by the time on our own machine."""
    if endpoint is None:
        return None if gpu_hour_price is None or seconds is None else gpu_hour_price * seconds / 3600
    if endpoint.price is None or not isinstance(engine, EndpointEngine):
        return None
    replies = [engine.client.paid.replies[engine.chat_request(request).key(endpoint)] for request in requests]
    inputs, outputs = sum(one.input_tokens for one in replies), sum(one.output_tokens for one in replies)
    return (inputs * endpoint.price.input + outputs * endpoint.price.output) / 1e6 / len(requests)
