"""Every key of every stage: its type, default and role, checked by one piece of code in the pipeline and the stages.

`stage_keys.json` is generated from the stages' dataclasses by `make keys`; reading it needs no torch.
TRL's own parser checks neither types nor abbreviations (`max_length: 2.5` and `seed: [3]` pass), hence this file.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict

from data_schemas.errors import ConfigError
from data_schemas.limits import Limits, problem_of
from data_schemas.sources import Source
from data_schemas.text import nearest, shown
from data_schemas.yaml_files import kind_of, load_yaml, unquoted_hint

# identity: part of the fingerprint. runtime: how a step is run, left out of the fingerprint.
# rows, model, function: an input; it enters the fingerprint by content (files), or by the step that writes it.
KeyRole = Literal["identity", "runtime", "rows", "model", "function"]
INPUT_ROLES = ("rows", "model", "function")
Values = Mapping[str, Any]  # the values of a stage's keys, by name; their types are in stage_keys.json
Keys = dict[str, Any]  # the same, of a caller that adds to them
PIPELINE_KEYS = ("step", "run_group", "fingerprint")  # set by the pipeline, left out of --help
KEYS_FILE = Path(__file__).with_name("stage_keys.json")
TRACKERS = ("none", "wandb", "tensorboard", "trackio", "mlflow")  # values of report_to
LONGEST_NAME = 255  # bytes of a file's name
LONGEST_PATH = 4095
MOST_LISTED = 20  # valid names that a message lists

# Keys of TRL that this project replaces. They are refused with a remedy.
REPLACED_KEYS = {
    "gradient_accumulation_steps": "set global_batch_size; accumulation follows from it",
    "load_best_model_at_end": "set keep, which chooses the model that is saved",
    "resume_from_checkpoint": "a stage resumes by itself from the newest complete checkpoint in its output_dir",
    "auto_find_batch_size": "the micro-batch is halved automatically where it does not fit into memory",
    "chat_template_path": "the template is set once, by prepare_base.chat_template",
    "eval_packing": "evaluation rows are never packed, so that evaluation numbers do not depend on packing",
    "assistant_only_loss": "the loss is always on every assistant turn",
    "hub_token": "a token in a file is read by others; log in with `hf auth login`, or set HF_TOKEN",
    "completion_only_loss": "the loss is always on every assistant turn",
    "precompute_ref_log_probs": "leave it out: they are always computed once, and cached for other steps",
}


class StageKey(BaseModel):
    """One key of a stage."""

    type: str  # "float", "int | null", "list[str] | null", …
    default: Any = None
    role: KeyRole = "identity"
    required: bool = False
    own: bool = False  # declared by this project, not by TRL
    omitted_at_default: bool = False  # its default is no part of the identity, which is as before the key existed
    choices: list[str] | None = None  # of text and of the items of a list
    limits: Limits | None = None  # of a number and of the numbers of a list or mapping
    may_be_empty: bool = False  # an empty list or text has a meaning
    help: str = ""

    @property
    def is_list(self) -> bool:
        """Whether the value may be a list."""
        return "list[" in self.type


class StageTraits(BaseModel):
    """What the pipeline has to know of a stage besides its keys. Declared once, as `TRAITS` in the stage's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: str  # one sentence for docs/recipe.md
    position: int  # its place in the loop; in a round the stages run in this order
    kind: Literal["trains", "generates", "transforms"]
    runs: Literal["once", "in_round", "after_round", "by_plan"] = "in_round"  # by_plan: it has no separate section
    in_every_round: bool = True  # false: a round has it only where the recipe's round_stages names it
    has_variants: bool = False  # it trains by a Method: variants, their average, and `alignloop check` are available
    variant_key: str | None = None  # a key of the recipe itself that a variant may set too
    one_process: bool = False  # it never runs on several processes
    imports_torch: bool = True
    preload: bool = False  # the pre-imported Python that steps are forked from imports it
    headlines: list[str] = []  # metrics that are shown when the step is done
    summary_columns: dict[str, str] = {}  # column of summary.json's table of rounds -> the metric it shows


class StageDescription(BaseModel):
    """All keys of a stage."""

    recipe_version: int  # raised whenever the stage's output changes for the same keys
    example: str
    traits: StageTraits
    keys: dict[str, StageKey]


SECTIONS = {"prepare_data": "data (of the stage prepare_data)"}  # others are called as their stage


@functools.cache
def stages() -> dict[str, StageDescription]:
    """Every stage's description, by name."""
    if get_args(KeyRole)[2:] != INPUT_ROLES:
        raise AssertionError("INPUT_ROLES and KeyRole differ")
    content = json.loads(KEYS_FILE.read_text(encoding="utf-8"))
    return {name: StageDescription.model_validate(stage) for name, stage in content.items()}


# (stage, name of the key in other stages or in TRL) -> its name here, where the nearest name is another key.
SAME_MEANING = {
    ("rl", "max_new_tokens"): "max_completion_length",
    ("rl", "max_prompt_length"): "max_prompt_tokens",
}


def elsewhere(name: str) -> str:
    """Which sections have a key of this name, for the end of an error message; empty where none has."""
    sections = [SECTIONS.get(stage, stage) for stage, description in stages().items() if name in description.keys]
    if not sections:
        return ""
    return f"; it is a key of the section{'s' * bool(sections[1:])} {', '.join(sections)}"


def check_keys(stage: str, values: Values, *, where: str) -> Keys:
    """The values converted to their types (`"1e-5"` becomes 1e-05).

    Raises ConfigError for an unknown key, a replaced one, or a wrong type; the message starts with `where`, which is a
    file or a recipe's section.
    """
    keys = stages()[stage].keys
    typed: Keys = {}
    for name, value in values.items():
        if name not in keys:
            meant = SAME_MEANING.get((stage, str(name)))
            named = f"; did you mean {meant!r}?" if meant else ""
            hint = named or unquoted_hint(name) or nearest(str(name), list(keys)) or elsewhere(str(name))
            raise ConfigError(f"{where}: unknown key {shown(name)} of stage {stage}{hint}")
        typed[name] = check_value(value, keys[name], where=f"{where}: {name}")
        if name in REPLACED_KEYS and typed[name] not in (None, False):
            raise ConfigError(f"{where}: {name} is not a key here: {REPLACED_KEYS[name]}")
    return typed


def check_value(value: object, key: StageKey, *, where: str) -> Any:
    """The value converted to the key's type. Raises ConfigError where it has another type or is not allowed."""
    if key.role == "rows" and isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [
            Source.of(item, where=where).value()
            if isinstance(item, Mapping)
            else check_value([item], key, where=where)[0]
            for item in value
        ]
    for kind in key.type.split(" | "):
        try:
            typed = _convert(value, kind)
        except (TypeError, ValueError, OverflowError):
            continue
        _check_allowed(typed, key, where=where)
        return typed
    expected = key.type.replace("null", "nothing (null)")
    found, hint = kind_of(value), unquoted_hint(value) if "str" in key.type else ""
    if isinstance(value, list) and key.is_list:
        position, item = _wrong_item(value, key)
        found += f", and its item {position}, {shown(item)}, is {kind_of(item)}"
        hint = unquoted_hint(item) if "str" in key.type else ""
    elif isinstance(value, str | int | float) and key.is_list and not hint:
        hint = f"; write it as a list, as in [{value}]"
    raise ConfigError(f"{where}={shown(value)} is {found}, expected {expected}{hint}")


def _wrong_item(values: list[object], key: StageKey) -> tuple[int, object]:
    """The first item of a list that has not the type that the key's items have, and its number from 1."""
    [kind] = re.findall(r"list\[(.+)\]", key.type)
    for position, item in enumerate(values, 1):
        try:
            _convert(item, kind)
        except (TypeError, ValueError, OverflowError):
            return position, item
    raise AssertionError("every item has the type")


def _check_allowed(value: object, key: StageKey, *, where: str) -> None:
    """Raises ConfigError where a typed value is not one of the choices, beyond a limit, empty, or not a possible path.

    A list is refused for its first item that is not allowed.
    """
    is_blank = value == [] or (isinstance(value, str) and not value.strip())
    if is_blank and not (key.may_be_empty or key.default in ("", [])):
        found = "an empty list" if value == [] else "empty text"
        remedy = "give a value" if key.required else f"leave the key out: its default is {json.dumps(key.default)}"
        raise ConfigError(f"{where}={shown(value)} is {found}; {remedy}")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            _check_text(item, key, where=where)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            if expected := problem_of(item, key.limits):
                if isinstance(value, list):
                    expected = expected.replace("a number", "numbers", 1)
                raise ConfigError(f"{where}={shown(value)}: expected {expected}")
        elif isinstance(item, dict):
            if problem := _problem_of_mapping(item):
                raise ConfigError(f"{where}={shown(value)} {problem}")
            _check_names(item, key, where=where)


def _check_names(mapping: Values, key: StageKey, *, where: str) -> None:
    """Raises ConfigError where the key lists the names that its mapping of names to numbers may have, and one is not
    among them, or where a value is neither null nor a number within the key's limits."""
    for name, value in mapping.items() if key.choices else ():
        _check_text(str(name), key, where=where)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"{where}.{name}={shown(value)} is {kind_of(value)}, expected a number or nothing (null)")
        if value is not None and (expected := problem_of(value, key.limits)):
            raise ConfigError(f"{where}.{name}={shown(value)}: expected {expected} or nothing (null)")


def _check_text(text: str, key: StageKey, *, where: str) -> None:
    if key.choices and text not in key.choices:
        listed = [*key.choices[:MOST_LISTED], *(["…"] if len(key.choices) > MOST_LISTED else [])]
        raise ConfigError(f"{where}={shown(text)} is not one of {', '.join(listed)}{nearest(text, key.choices)}")
    if "\0" in text:
        raise ConfigError(f"{where}={shown(text)} contains a null character; remove it")
    if key.role in ("rows", "model") and not text:
        raise ConfigError(f"{where}='' is empty text; expected a path")
    if key.role in ("rows", "model") and (problem := path_problem(text)):
        raise ConfigError(f"{where}={shown(text)} {problem}")


def path_problem(text: str) -> str:
    """Why no file system can have the path; empty where one can."""
    if not text.strip():
        return "is empty text; expected a path"
    if "\0" in text:
        return "contains a null character; remove it"
    parts = [len(part.encode(errors="replace")) for part in text.split("/")]
    if max(parts) > LONGEST_NAME or sum(parts) + len(parts) > LONGEST_PATH:
        return f"is too long for a path: expected at most {LONGEST_NAME} bytes for each name and {LONGEST_PATH} in all"
    return ""


def _problem_of_mapping(value: object) -> str:
    """What JSON cannot hold in the value of a mapping, which is part of a step's identity; empty where all is well."""
    if isinstance(value, dict):
        if {type(name) for name in value} not in (set(), {str}, {int}):
            wrong = next((name for name in value if not isinstance(name, str)), None)
            return f"has the key {shown(wrong)}, which is {kind_of(wrong)}; expected text: put it in quotes"
        return next(filter(None, map(_problem_of_mapping, value.values())), "")
    if isinstance(value, list):
        return next(filter(None, map(_problem_of_mapping, value)), "")
    if isinstance(value, int | float):
        expected = problem_of(value, None)
        return f"contains {shown(value)}; expected {expected}" if expected else ""
    if value is None or isinstance(value, str):
        return ""
    return f"contains {shown(value)}, which is {kind_of(value)}; expected text, numbers, lists or mappings"


def _convert(value: object, kind: str) -> object:
    """The value as one of the types of StageKey.type. Raises TypeError or ValueError where it is not of the type."""
    if kind == "any":
        return value
    if kind == "null":
        if value is None or value in ("null", "none", "None"):
            return None
        raise TypeError
    if kind.startswith("list["):
        if not isinstance(value, list):
            raise TypeError
        return [_convert(item, kind[5:-1]) for item in value]
    if kind == "dict":
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = parse_yaml(value, where="the value")
        if not isinstance(value, dict):
            raise TypeError
        return value
    if not isinstance(value, str | int | float | datetime.date):  # YAML also has sets and bytes
        raise TypeError
    if kind == "bool":
        if isinstance(value, bool):
            return value
        if str(value).lower() not in ("true", "false"):
            raise TypeError
        return str(value).lower() == "true"
    if isinstance(value, bool) or (kind == "int" and not isinstance(value, int | str)):
        raise TypeError
    if kind == "int":
        return int(value)  # pyright: ignore[reportArgumentType]  # an integer or text
    if kind == "float":
        return float(value)  # pyright: ignore[reportArgumentType]  # TypeError where it is neither number nor text
    return str(value)


def parse_yaml(text: str, *, where: str) -> object:
    """A value that is written as YAML. Raises ConfigError."""
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"{where} {text}: not YAML, as in [a, b] or {{path: a}}") from None


def with_defaults(stage: str, values: Values) -> Keys:
    """Every key of the stage, with its given value or its default."""
    return {name: values.get(name, key.default) for name, key in stages()[stage].keys.items()}


def identity_of(stage: str, values: Values, *, roles: Sequence[KeyRole] = ("identity",)) -> Keys:
    """The keys of these roles that are part of a step's identity, with their given values or defaults."""
    keys = stages()[stage].keys
    return {
        name: value
        for name, value in with_defaults(stage, values).items()
        if keys[name].role in roles and not (keys[name].omitted_at_default and value == keys[name].default)
    }


def check_required(stage: str, values: Values, *, where: str) -> None:
    """Raises ConfigError for the first required key that has no value."""
    for name, key in stages()[stage].keys.items():
        if key.required and values.get(name) is None:
            raise ConfigError(f"{where}: {name} is missing ({key.help})")
