"""What goes into an engine and what comes out: requests, settings, answers, and the protocol of an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, Protocol, Self, TypedDict

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from data_schemas.endpoints import Endpoint, parse_endpoints
from data_schemas.rows import Prompt
from data_schemas.stage_keys import Values
from engine.runtime.arguments import GenerationArguments


@dataclass(frozen=True)
class Policy:
    """A model that answers, and its name in the rows that are written."""

    path: str  # of one behind an endpoint, the endpoint's name
    name: str
    endpoint: Endpoint | None = None

    @classmethod
    def of(cls, path: str, endpoints: Values | None, *, name: str = "") -> Self:
        """The policy in a folder, or that behind the endpoint of this name."""
        endpoint = parse_endpoints(endpoints or {}, where="endpoints").get(path)
        return cls(path, name or path, endpoint)


@dataclass(frozen=True)
class SampleRequest:
    """A request for one answer: the k-th answer to the prompt."""

    prompt: Prompt
    k: int
    temperature: float | None = None  # None: the temperature of the settings


@dataclass(frozen=True)
class Answer:
    """A sampled answer with the prompt that it answers."""

    prompt: Prompt
    k: int
    text: str
    ids: list[int]  # tokens, the end token included; empty in an answer that was read from rows
    ended: bool  # by the end token, not by max_new_tokens
    policy: str = ""  # name of the policy
    problem: str = ""  # of an endpoint: "refused" by its model, "rejected" by the server
    log_probs: list[float] | None = None  # of the tokens, as they were sampled; where rl asks vLLM for them


class GeneratedAnswer(TypedDict):
    """What an engine generates, in the form in which the journal keeps it. The fields are those of Answer."""

    text: str
    ids: list[int]
    ended: bool
    problem: NotRequired[str]
    log_probs: NotRequired[list[float]]


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How answers are sampled. An engine gets nothing else besides the policy and the requests."""

    seed: str  # of the noise; holds the purpose, so that different uses of one seed have independent noise
    temperature: float
    top_p: float
    max_new_tokens: int
    dtype: str  # name of a torch dtype, or "auto": as the model was saved
    batch_size: int  # answers generated at a time
    engine: str
    vllm: Values | None  # the options of the vLLM engine
    use_cpu: bool

    @classmethod
    def of(cls, arguments: GenerationArguments, *, purpose: str) -> Self:
        return cls(
            seed=f"{arguments.seed}/{purpose}",
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            max_new_tokens=arguments.max_new_tokens,
            dtype=arguments.dtype,
            batch_size=arguments.generation_batch_size,
            engine=arguments.engine,
            vllm=arguments.vllm,
            use_cpu=arguments.use_cpu,
        )

    @property
    def identity(self) -> tuple[str, str, float, float, int]:
        """The settings that determine an answer: part of the key under which the journal keeps it."""
        return self.dtype, self.seed, self.temperature, self.top_p, self.max_new_tokens

    def temperature_of(self, request: SampleRequest) -> float:
        return self.temperature if request.temperature is None else request.temperature


class Engine(Protocol):
    """Samples answers from one policy. Each engine has its own file; `sampler.ENGINES` lists them."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[Answer]:
        """One answer for each request, in order. The same request has the same answer in any batch."""
        ...


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: the template's end of a turn, and the end tokens of the model's own configuration."""
    return end_tokens_of(model.generation_config, tokenizer)


def end_tokens_of(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """As `end_tokens`, for a model of which only the generation configuration is loaded."""
    configured: int | list[int] | None = generation.eos_token_id if generation else None
    tokens = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in [*tokens, tokenizer.eos_token_id] if token is not None}  # pyright: ignore[reportArgumentType]
