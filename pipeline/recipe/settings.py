"""The settings of a recipe: everything in it that is not a section of stage keys."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator

from pipeline.recipe.names import ROUND_STAGES, RoundStage
from pipeline.recipe.sections import Launch, Mix


class Settings(Mix, BaseModel):
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")  # of the run, and of its folder
    rounds: int = Field(default=2, ge=0)
    base_model: str | None = None  # a folder or a hub name; without it, a base model is pretrained
    output_dir: str = "runs"  # relative to the working directory
    seed: int = 0
    launch: Launch = Launch()

    first_sft: bool = True  # round 0 trains the first policy; false: base_model is a chat model and is that policy
    round_stages: list[RoundStage] = list(ROUND_STAGES)  # the stages of a round
    refit_reward_model: bool = True  # in each round, on all batches so far; false: all rounds use that of round 1
    dpo_reference: Literal["start", "first"] = "start"  # DPO's reference: the model it starts from, or the first policy
    sft_from: Literal["base", "best"] = "base"  # the model that SFT starts from, from round 1 on
    annotate_policies: Literal["best", "best_two"] = "best_two"  # the policies whose answers are compared
    sampling_policies: Literal["best", "best_two"] = "best"  # the policies that rejection sampling takes answers from

    path: Path = Field(exclude=True)  # the file that the recipe was read from; not a key

    @field_validator("round_stages")
    @classmethod
    def _in_their_order(cls, given: list[RoundStage]) -> list[RoundStage]:
        ordered = [stage for stage in ROUND_STAGES if stage in given]
        if given != ordered:
            raise ValueError(f"the order is fixed; try [{', '.join(ordered)}]")
        return given

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output_dir).absolute() / self.name
