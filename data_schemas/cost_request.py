"""What pipeline/planner asks of commands/estimate.py, and the answers: a line of JSON each, on its stdin and stdout."""

from typing import Any, Literal, NotRequired, TypedDict

from data_schemas.check_request import ModelSource, TokenizerSource

ANSWER = "answer: "  # begins a line that holds an answer; libraries print other lines
RowKind = Literal["documents", "conversations", "pairs", "prompts"]


class RowFiles(TypedDict):
    """Files of rows of one kind whose lengths are asked for."""

    kind: RowKind
    files: list[str]


class RowSample(TypedDict):
    """The tokens of one row."""

    shared: int  # that its answers begin with in common; 0 for a single sequence
    branches: list[int]  # the rest of each sequence
    trained: int  # tokens that a loss sees, of all sequences


class RowLengths(TypedDict):
    count: int  # rows of the files
    samples: list[RowSample]  # of rows that are evenly spread over the files
    problem: str  # why the tokenizer can't be read; four characters then count as a token


class ModelAnswer(TypedDict):
    config: dict[str, Any]  # as in config.json
    parameters: int
    problem: str  # why they are not known; empty where they are


class Probe(TypedDict):
    """A training step on one micro-batch whose memory is measured on tensors without content."""

    stage: str  # pretrain, sft, reward_model or dpo
    keys: dict[str, Any]  # of the stage, typed
    config: dict[str, Any]  # of the model
    layers: int  # of the model; the probe has fewer
    micro_batch: list[RowSample]
    accumulates: bool  # whether an optimizer step has several micro-batches
    precision: Literal["float32", "autocast", "bfloat16"]


class ProbeAnswer(TypedDict):
    """Bytes for all layers. `peak` is of one process without ZeRO, with everything that it holds."""

    peak: float
    activations: float  # at their peak, with the logits and everything temporary
    logits: float  # the part of `activations` that does not grow with the number of layers
    parameters: int
    trainable: int
    seconds: float
    problem: str


class Question(TypedDict):
    """One line of the program's stdin."""

    tokenizer: NotRequired[TokenizerSource]
    rows: NotRequired[dict[str, RowFiles]]  # answered by name -> RowLengths
    model: NotRequired[ModelSource]  # answered by a ModelAnswer
    probe: NotRequired[Probe]  # answered by a ProbeAnswer
    rate: NotRequired[bool]  # answered by floating point operations a second of this CPU in float32
