"""The settings of a recipe: everything in it that is not a section of stage keys."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from data_schemas.endpoints import Endpoint
from data_schemas.stage_keys import path_problem
from data_schemas.text import nearest
from pipeline.recipe.names import stages_of_a_round, stages_of_every_round, stages_of_one_pass
from pipeline.recipe.sections import Launch, Mix


class Report(BaseModel):
    """`report`: what the run's page shows."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    samples: bool = Field(default=True, description="Whether it contains prompts and answers; false leaves them out.")


def with_dpo_first(stages: Sequence[str]) -> list[str]:
    """The stages of a round with DPO before rejection sampling, where it has both."""
    if not {"dpo", "rejection_sampling"} <= set(stages):
        return list(stages)
    others = [stage for stage in stages if stage != "dpo"]
    place = others.index("rejection_sampling")
    return [*others[:place], "dpo", *others[place:]]


def order_problem(given: Sequence[str]) -> str | None:
    """What is wrong with the order of a round's stages, with the orders that are possible; None: nothing."""
    ordered = [stage for stage in stages_of_a_round() if stage in given]
    orders = [ordered, with_dpo_first(ordered)]
    if given in orders:
        return None
    if repeated := sorted({stage for stage in given if given.count(stage) > 1}):
        return f"{', '.join(repeated)} is there more than once"
    possible = " or ".join(dict.fromkeys(f"[{', '.join(order)}]" for order in orders))
    return f"the order is fixed; try {possible}"


class Settings(Mix, BaseModel):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200, description="Name of the run, and of its folder."
    )
    rounds: int = Field(default=2, ge=0, le=1000, description="Number of rounds after round 0.")
    base_model: str | None = Field(
        default=None, description="A folder or a hub name; null: a base model is pretrained."
    )
    output_dir: str = Field(
        default="runs",
        description="Folder of the runs, relative to the working directory; `~` and `$VARIABLE` are expanded.",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of every stage whose section sets none.")
    launch: Launch = Field(default=Launch(), description="Where and how steps run; a section may override it.")

    stages: list[str] | None = Field(
        default=None,
        description="The stages of a run without rounds: any of pretrain, sft, reward_model, dpo, rl, evaluate_tasks,"
        " evaluate_policy.",
    )
    first_sft: bool = Field(
        default=True, description="Round 0 trains the first policy by SFT; false: base_model is the first policy."
    )
    round_stages: list[str] = Field(
        default_factory=stages_of_every_round,
        description="The stages of a round; dpo may stand before rejection_sampling.",
    )
    round_stages_from: dict[int, list[str]] = Field(
        default_factory=dict,
        description="Other stages from a round on, as in `{3: [annotate, dpo]}`, until the next round that is listed.",
    )
    refit_reward_model: bool = Field(
        default=True, description="Each round trains a reward model on all batches so far; false: only round 1 does."
    )
    dpo_reference: Literal["start", "first"] = Field(
        default="start", description="The reference of DPO: the model that it starts from, or the first policy."
    )
    reward_model_from: str = Field(
        default="base",
        description="The model that the reward model starts from: `base`, `best` (the best policy), or another one: a"
        " folder or a hub name.",
    )
    sft_from: Literal["base", "best"] = Field(
        default="base",
        description="The model that SFT starts from, from round 1 on: the base, or the best policy (the round's DPO"
        " model where dpo comes first).",
    )
    dpo_batch_decay: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="With several batches of pairs in DPO, the share of each older batch's pairs, relative to the next"
        " newer one: 0.5 trains on half of the batch before, a quarter of the one before that, and so on.",
    )
    sft_batches: int = Field(
        default=1, ge=1, le=1000, description="Number of most recent batches of winners that SFT is trained on."
    )
    average_with_best: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Weight of the best policy before the round in an average with the model that the round trains,"
        " which is then the round's policy (WARP, arXiv 2406.16768); 0: none.",
    )
    annotate_policies: Literal["best", "best_two"] = Field(
        default="best_two", description="The policies whose answers are compared."
    )
    sampling_policies: Literal["best", "best_two"] = Field(
        default="best", description="The policies that rejection sampling takes answers from."
    )

    endpoints: dict[str, Endpoint] = Field(
        default_factory=dict, description="Servers whose models may answer or judge, by the name that sections use."
    )
    report: Report = Field(default=Report(), description="What the run's page shows, report.html.")

    # No keys of a recipe:
    path: Path = Field(exclude=True)  # the file that it was read from
    content: dict[Any, Any] = Field(default_factory=dict, exclude=True)  # of the file, with the command line's settings

    @field_validator("stages")
    @classmethod
    def _of_one_pass(cls, given: list[str] | None) -> list[str] | None:
        if given is None:
            return None
        known = stages_of_one_pass()
        if wrong := [stage for stage in given if stage not in known]:
            raise ValueError(f"{wrong[0]!r} is not one of {', '.join(known)}{nearest(wrong[0], known)}")
        if twice := [stage for stage in known if given.count(stage) > 1]:
            raise ValueError(f"{twice[0]} is listed twice; a run without rounds runs each stage once")
        if not set(given) - {"evaluate_tasks", "evaluate_policy"}:
            raise ValueError("no stage that trains; try [sft]")
        return [stage for stage in known if stage in given]

    @field_validator("round_stages")
    @classmethod
    def _in_their_order(cls, given: list[str]) -> list[str]:
        if problem := order_problem(given):
            raise ValueError(problem)
        return given

    @field_validator("round_stages_from")
    @classmethod
    def _each_in_order(cls, given: dict[int, list[str]]) -> dict[int, list[str]]:
        for number, stages in given.items():
            if problem := order_problem(stages):
                raise ValueError(f"{number}: {problem}")
        return given

    @field_validator("base_model", "output_dir", "reward_model_from")
    @classmethod
    def _is_possible_path(cls, given: str | None) -> str | None:
        if given is not None and (problem := path_problem(given)):
            raise ValueError(problem)
        return given

    @property
    def reward_base(self) -> str | None:
        """The model from outside the run that the reward model starts from; None: one of the run's own."""
        return None if self.reward_model_from in ("base", "best") else self.reward_model_from

    def stages_of_round(self, number: int) -> list[str]:
        """The stages of a round, in the order they run."""
        first = self._listed_from(number)
        return self.round_stages if first is None else self.round_stages_from[first]

    def key_of_stages(self, number: int) -> str:
        """The key that gives the stages of a round, for messages."""
        first = self._listed_from(number)
        return "round_stages" if first is None else f"round_stages_from.{first}"

    def _listed_from(self, number: int) -> int | None:
        """The entry of `round_stages_from` that holds in a round; None: `round_stages` does."""
        return max((first for first in self.round_stages_from if first <= number), default=None)

    def dpo_comes_first(self, number: int) -> bool:
        """Whether rejection sampling and SFT of a round go on from its DPO model."""
        stages = self.stages_of_round(number)
        return {"dpo", "rejection_sampling"} <= set(stages) and stages == with_dpo_first(stages)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output_dir).absolute() / self.name
