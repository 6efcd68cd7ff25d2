"""Names of a recipe's sections, and what is known of each."""

from typing import Any, Literal, get_args

Section = Literal[
    "data",
    "pretrain",
    "prepare_base",
    "sft",
    "reward_model",
    "judge",
    "annotate",
    "rejection_sampling",
    "dpo",
    "evaluate_policy",
]


SECTIONS: tuple[Section, ...] = get_args(Section)


RoundStage = Literal["annotate", "reward_model", "rejection_sampling", "sft", "dpo"]


ROUND_STAGES: tuple[RoundStage, ...] = get_args(RoundStage)  # in the order they run; evaluate_policy follows


STAGE_OF: dict[str, str] = {"data": "prepare_data", "judge": "reward_model"}  # the others bear their stage's name


Keys = dict[str, Any]


ONCE: tuple[Section, ...] = ("data", "pretrain", "prepare_base", "judge")  # before the rounds


AVERAGED: tuple[Section, ...] = ("sft", "reward_model", "dpo")  # may list variants


MIX_KEYS: dict[str, str] = {"sft": "human_share", "dpo": "dpo_batches"}  # the recipe's own that a variant may set


ALONE: tuple[Section, ...] = ("data", "prepare_base")  # always one process


GENERATING: tuple[Section, ...] = ("annotate", "rejection_sampling", "evaluate_policy")  # outside ZeRO, where it hangs
