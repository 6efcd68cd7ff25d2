"""The request that `alignloop check` gives to commands/check.py, as JSON: what to show, and where it is."""

from typing import Any, Literal, NotRequired, TypedDict

NOT_TRIED = "not tried: "  # commands/preflight.py begins a line with it that says why there was no preflight
TRIED = "tried: "  # likewise, with the section that has been tried


class TokenizerSource(TypedDict, total=False):
    """The tokenizer of the run: that of a folder or hub name (`path`), or one to train on `documents`."""

    path: str
    revision: str
    is_prepared: bool  # by prepare_base: it has its chat template and its end and pad tokens
    chat_template: str | None  # for a tokenizer that is not prepared
    template_date: str | None  # for a chat template that writes the current date
    needs_system_role: bool  # later steps have system messages
    trust_remote_code: bool
    documents: list[str]  # files
    vocab_size: int
    special_tokens: list[str]


class ModelSource(TypedDict, total=False):
    """The sizes of the base model: in the config of a folder or hub name, or those of the model to pretrain."""

    path: str
    revision: str
    architecture: dict[str, Any]


class RewardBase(TypedDict):
    """The model of reward_model_from, from which the reward models start."""

    tokenizer: TokenizerSource
    model: ModelSource


class TrainingRows(TypedDict):
    """A training step, with the files of rows that exist already."""

    step: str
    stage: str
    keys: dict[str, Any]
    from_reward_base: NotRequired[bool]  # else from the base model


class Precision(TypedDict):
    """A precision that stages of the recipe compute in, to be compared with the fastest on this device."""

    use: Literal["training", "generation"]
    key: Literal["bf16", "dtype"]  # of the stages
    chosen: str
    by_default: bool
    tokens: int  # rows of the matrices that are measured
    device: Literal["gpu", "cpu"]
    stages: list[str]


class CheckRequest(TypedDict):
    tokenizer: TokenizerSource
    steps: list[TrainingRows]
    missing: list[str]  # steps that have not written their rows yet
    model: ModelSource
    reward_base: NotRequired[RewardBase | None]
    precisions: list[Precision]
    show: int  # rows of each training step
    notes: list[str]  # what a user should know of the files that were read, one line each


class Trial(TypedDict):
    """A section of the recipe in some round, as its stage would get it, to be tried on a small model."""

    step: str
    section: str
    stage: str
    keys: dict[str, Any]  # typed
    given: list[str]  # the keys that the recipe sets, one of which may be to blame
    rows: list[str]  # files of rows of the stage's kind, where they exist already
    from_reward_base: NotRequired[bool]  # else from the base model


class PreflightRequest(TypedDict):
    """What `alignloop run` gives to commands/preflight.py, as JSON."""

    tokenizer: TokenizerSource
    model: ModelSource
    reward_base: NotRequired[RewardBase | None]
    trials: list[Trial]
    use_cpu: bool
