"""The request that `alignloop run` gives to commands/track_round.py after a round, as JSON: what wandb is to show."""

from collections.abc import Mapping
from typing import TypedDict

PAGE = "report.html"  # the page of a run, in its folder


class TrackedSample(TypedDict):
    """A policy's answer to a held-out prompt."""

    policy: str  # the step that trained it
    prompt: str
    answer: str
    ended: bool  # by the model, not by max_new_tokens


class TrackedRound(TypedDict):
    folder: str  # of the run
    name: str  # of the run, and of wandb's group
    round: int | None
    rounds: list[Mapping[str, object]]  # the rows of the table: one a round so far, with the columns of summary.json
    samples: list[TrackedSample]  # of the newest policy; empty where the recipe leaves them out
    page: str | None  # the file of the run's page, where there is one
