"""Endpoints: servers with an OpenAI-compatible chat interface, as `endpoints` of a recipe or a stage describes them.

    endpoints:
      judge:
        base_url: https://api.example.com/v1
        model: large-2026-05
        api_key_env: EXAMPLE_API_KEY        # the name of an environment variable, never the key
        price: {input: 2.5, output: 10}     # per million tokens
        budget: {money: 20}

The model's name and `request` determine the answers: they are part of a step's identity. All else is not.
"""

import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_schemas.errors import ConfigError
from data_schemas.field_errors import problem_of_field
from data_schemas.files import canonical_json
from data_schemas.limits import Limits, problem_of
from data_schemas.text import nearest, shown
from data_schemas.yaml_files import kind_of

# Keys of stages whose value may be the name of an endpoint in place of a model's folder.
ENDPOINT_KEYS = ("annotator_llm", "judge_llm", "baseline", "other_policies", "paraphrase_llm")
PAID_ANSWERS = "paid_answers.jsonl"  # in a step's folder: what its endpoints have answered
OF_REQUESTS = ("messages", "model", "stream", "n", "tools")  # fields that `request` may not set
OPERATIONS = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models")  # below a base_url
SECRET = re.compile(r"api.?key|authorization|bearer|credential|passw|secret|^((access|auth|hf)_?)?token$", re.I)
TOKENS = Limits(minimum=1, also=(-1,))  # some servers take -1 for no limit
PENALTY = Limits(minimum=-2, maximum=2)
# Fields of a chat completion that `request` may set and that are numbers -> their limits.
REQUEST_NUMBERS = {
    "max_tokens": TOKENS,
    "max_completion_tokens": TOKENS,
    "temperature": Limits(minimum=0),
    "top_p": Limits(minimum=0, maximum=1),
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "seed": Limits(),
}
# All that are known of the common servers; a server may have others.
REQUEST_FIELDS = (
    *REQUEST_NUMBERS,
    *("stop", "logit_bias", "logprobs", "top_logprobs", "response_format", "tool_choice", "parallel_tool_calls"),
    *("reasoning", "reasoning_effort", "thinking", "verbosity", "prediction", "modalities", "service_tier", "provider"),
    *("user", "safety_identifier", "prompt_cache_key", "metadata", "store", "chat_template_kwargs"),
    *(
        "top_k",
        "min_p",
        "min_tokens",
        "repetition_penalty",
        "length_penalty",
        "stop_token_ids",
        "ignore_eos",
        "best_of",
    ),
    *("skip_special_tokens", "guided_json", "guided_regex", "guided_choice", "structured_outputs"),
)


class Price(BaseModel):
    """What an endpoint's tokens cost, in any currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0, allow_inf_nan=False)  # per million tokens
    output: float = Field(ge=0, allow_inf_nan=False)


class Budget(BaseModel):
    """The most that all steps of a run may spend at an endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    money: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # in the currency of the price
    tokens: int | None = Field(default=None, gt=0)  # input and output together


class Endpoint(BaseModel):
    """A server with an OpenAI-compatible chat interface, and one of its models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = Field(description="Address of the interface, as in https://api.example.com/v1; not part of a step.")
    model: str = Field(min_length=1, description="Name of the model at the server: part of a step's identity.")
    api_key_env: str | None = Field(
        default=None, description="Name of the environment variable that holds the key; null: the server needs none."
    )
    concurrency: int = Field(default=8, ge=1, le=1000, description="Requests that are open at the same time.")
    price: Price | None = Field(default=None, description="{input, output}: the price of a million tokens.")
    budget: Budget = Field(
        default=Budget(), description="{money, tokens}: the most that all steps of the run may spend here."
    )
    timeout_seconds: float = Field(default=300.0, gt=0, le=86_400, description="Longest time of one attempt.")
    num_attempts: int = Field(default=6, ge=1, le=100, description="Attempts for each request before the step stops.")
    first_wait_seconds: float = Field(
        default=1.0, ge=0, le=600, description="Wait before the second attempt, doubled for each further one."
    )
    request: dict[str, Any] = Field(
        default={},
        description="Further fields of each request, or null for one that the server does not accept: part of a step.",
    )

    @property
    def identity(self) -> list[str]:
        """What determines the answers besides the messages and the sampling settings."""
        return [self.model, *([canonical_json(self.request)] if self.request else [])]


def parse_endpoints(values: object, *, where: str) -> dict[str, Endpoint]:
    """The endpoints of a mapping by name. Raises ConfigError, which never shows a value that might be a key."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a mapping of names, as in {{judge: {{base_url: …, model: …}}}}")
    for name in values:
        if not re.fullmatch(r"\w([\w.:@+ -]*[\w+])?", str(name)):
            raise ConfigError(
                f"{where}: an endpoint has the name {shown(name)}; expected one of letters and digits, as in judge"
            )
    return {str(name): _parse(value, where=f"{where}.{name}") for name, value in values.items()}


def request_hints(endpoint: Endpoint, *, where: str) -> Iterator[str]:
    """A sentence for each field of `request` that no chat completion has, and whose name is near one that it has."""
    for name in endpoint.request:
        if name not in REQUEST_FIELDS and (hint := nearest(name, REQUEST_FIELDS)):
            yield f"{where}.request.{name} is sent as it is, and most servers do not know it{hint}"


def _parse(value: object, *, where: str) -> Endpoint:
    if isinstance(value, Endpoint):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping, as in {{base_url: https://…/v1, model: …}}")
    try:
        endpoint = Endpoint.model_validate(dict(value))
    except ValidationError as error:
        raise ConfigError(f"{where}{_problem(error)}") from None
    _check_address(endpoint.base_url, where=f"{where}.base_url")
    name = endpoint.api_key_env
    if name is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", name):  # it may be the key itself: it is not shown
        raise ConfigError(
            f"{where}.api_key_env is not the name of an environment variable; expected one in capital letters, as in "
            "OPENAI_API_KEY; the key itself must not be in a file"
        )
    if endpoint.budget.money is not None and endpoint.price is None:
        raise ConfigError(f"{where}.budget.money needs a price beside it, as in price: {{input: 2.5, output: 10}}")
    _check_request(endpoint.request, where=f"{where}.request")
    return endpoint


def _check_request(request: Mapping[str, Any], *, where: str) -> None:
    """Raises ConfigError for fields that each request sets, for a secret, and for values that no server can take."""
    if taken := [field for field in OF_REQUESTS if field in request]:
        raise ConfigError(f"{where}.{taken[0]} is set by each request; leave it out")
    if secret := [name for name in _names_in(request) if SECRET.search(name)]:
        raise ConfigError(
            f"{where} has the field {secret[0]!r}: a key must not be in a file; give api_key_env, its variable's name"
        )
    try:
        json.dumps(request, allow_nan=False)
    except (TypeError, ValueError):  # it may be long, or hold something secret: it is not shown
        raise ConfigError(
            f"{where} holds what JSON cannot, as .nan or a date; expected text, numbers, lists and mappings"
        ) from None
    for name, limits in REQUEST_NUMBERS.items():
        value = request.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{where}.{name}={shown(value)} is {kind_of(value)}, expected a number")
        if expected := problem_of(value, limits):
            raise ConfigError(f"{where}.{name}={shown(value)}: expected {expected}")


def _names_in(value: object) -> Iterator[str]:
    """The names of all fields inside a value."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from _names_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names_in(inner)


def _problem(error: ValidationError) -> str:
    """Where the first mistake is and what is wrong, without the value of a field that might be a key."""
    # A misspelt key leaves another one missing: the misspelling comes first.
    first = next((one for one in error.errors() if one["type"] == "extra_forbidden"), error.errors()[0])
    place, name = ".".join(map(str, first["loc"])), str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        if "key" in name.lower():
            return f": unknown key {name!r}: a key must not be in a file; give api_key_env, the name of a variable"
        parent = {"price": Price, "budget": Budget}.get(str(first["loc"][0]), Endpoint)
        valid = list(parent.model_fields)
        return f": unknown key {place!r}{nearest(name, valid) or '; expected ' + ', '.join(valid)}"
    if first["type"] == "missing":
        return f".{place} is missing"
    found = "" if "key" in name else f"={shown(first['input'])}"
    return f".{place}{found}: {problem_of_field(first)}"


def _check_address(address: str, *, where: str) -> None:
    """Raises ConfigError where it is no http address, or may hold a password or a key."""
    try:
        parts = urllib.parse.urlsplit(address)
        has_host = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        raise ConfigError(f"{where} is no address; expected one as https://api.example.com/v1") from None
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"{where} contains a user name, a password or a query, which are secret; give only the address, and the "
            "key by api_key_env"
        )
    if parts.scheme not in ("http", "https") or not has_host:
        raise ConfigError(f"{where}={shown(address)} is no address; expected one as https://api.example.com/v1")
    if operation := next((one for one in OPERATIONS if parts.path.rstrip("/").endswith(one)), None):
        base = address.rstrip("/").removesuffix(operation)
        raise ConfigError(f"{where}={shown(address)} is the address of {operation}; give the one before it, {base}")
