"""Every key of every stage: its type, default and role, checked by one piece of code in the pipeline and the stages.

`stage_keys.json` is generated from the stages' dataclasses by `make keys`; reading it needs no torch.
TRL's own parser checks neither types nor abbreviations (`max_length: 2.5` and `seed: [3]` pass), hence this file.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict

from data_schemas.errors import ConfigError
from data_schemas.files import check_regular
from data_schemas.sources import Source
from data_schemas.text import nearest

# identity: part of the fingerprint. runtime: how a step is run, left out of the fingerprint.
# rows, model, function: an input; it enters the fingerprint by content (files), or by the step that writes it.
KeyRole = Literal["identity", "runtime", "rows", "model", "function"]
INPUT_ROLES = ("rows", "model", "function")
Values = Mapping[str, Any]  # the values of a stage's keys, by name; their types are in stage_keys.json
Keys = dict[str, Any]  # the same, of a caller that adds to them
COMMON_KEYS = (  # keys of TRL that --help shows
    "model_name_or_path output_dir learning_rate num_train_epochs max_steps max_length eval_steps "
    "per_device_train_batch_size lr_scheduler_type beta use_peft bf16 use_cpu"
).split()
PIPELINE_KEYS = ("step", "run_group", "fingerprint")  # set by the pipeline, left out of --help
KEYS_FILE = Path(__file__).with_name("stage_keys.json")

# Keys of TRL that this project replaces. They are refused with a remedy.
REPLACED_KEYS = {
    "gradient_accumulation_steps": "set global_batch_size; accumulation follows from it",
    "load_best_model_at_end": "the best model by eval_loss, step 0 included, is always the one that is saved",
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
    choices: list[str] | None = None
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


@functools.cache
def stages() -> dict[str, StageDescription]:
    """Every stage's description, by name."""
    if get_args(KeyRole)[2:] != INPUT_ROLES:
        raise AssertionError("INPUT_ROLES and KeyRole differ")
    content = json.loads(KEYS_FILE.read_text(encoding="utf-8"))
    return {name: StageDescription.model_validate(stage) for name, stage in content.items()}


def check_keys(stage: str, values: Values, *, where: str) -> Keys:
    """The values converted to their types (`"1e-5"` becomes 1e-05).

    Raises ConfigError for an unknown key, a replaced one, or a wrong type; the message starts with `where`, which is a
    file or a recipe's section.
    """
    keys = stages()[stage].keys
    typed: Keys = {}
    for name, value in values.items():
        if name not in keys:
            raise ConfigError(f"{where}: unknown key {name!r} of stage {stage}{nearest(str(name), list(keys))}")
        typed[name] = check_value(value, keys[name], where=f"{where}: {name}")
        if name in REPLACED_KEYS and typed[name] not in (None, False):
            raise ConfigError(f"{where}: {name} is not a key here: {REPLACED_KEYS[name]}")
    return typed


def check_value(value: object, key: StageKey, *, where: str) -> Any:
    """The value converted to the key's type. Raises ConfigError where it has another type or is not a choice."""
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
        except (TypeError, ValueError):
            continue
        for item in typed if isinstance(typed, list) else [typed]:
            if key.choices and item is not None and item not in key.choices:
                raise ConfigError(
                    f"{where}={item!r} is not one of {', '.join(key.choices)}{nearest(str(item), key.choices)}"
                )
        return typed
    raise ConfigError(f"{where}={value!r} is {_name_of(value)}, expected {key.type.replace('null', 'nothing (null)')}")


def _name_of(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


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
            value = _parse_yaml(value, where="the value")
        if not isinstance(value, dict):
            raise TypeError
        return value
    if isinstance(value, list | dict) or value is None:
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


def with_defaults(stage: str, values: Values) -> Keys:
    """Every key of the stage, with its given value or its default."""
    return {name: values.get(name, key.default) for name, key in stages()[stage].keys.items()}


def check_required(stage: str, values: Values, *, where: str) -> None:
    """Raises ConfigError for the first required key that has no value."""
    for name, key in stages()[stage].keys.items():
        if key.required and values.get(name) is None:
            raise ConfigError(f"{where}: {name} is missing ({key.help})")


def load_yaml(text: str) -> Any:
    """The value of a YAML text, by the safe loader. Raises YAMLError, also for impossible dates or 1000 brackets."""
    try:
        return yaml.safe_load(text)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None


def read_yaml(path: Path) -> Keys:
    """The YAML mapping in a file, by the safe loader. Raises ConfigError, with line and column, where it is none.

    Raises DataError for a pipe, a socket or a device.
    """
    check_regular(path)
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{path}{place} is not YAML: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {_name_of(content)}, expected `key: value` lines")
    return content


def parse_command_line(stage: str, words: Sequence[str]) -> Keys:
    """The typed values of `--config FILE --key value --list a b --flag --no_flag`; the command line overrides the file.

    Raises ConfigError for anything else.
    """
    keys = stages()[stage].keys
    values: Keys = {}
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--"):
            raise ConfigError(f"{word!r}: expected --key value")
        name, has_value, attached = word[2:].partition("=")
        end = position + 1
        while end < len(words) and not re.match(r"--[a-zA-Z]", words[end]):
            end += 1
        given = ([attached] if has_value else []) + list(words[position + 1 : end])
        position = end
        if name == "config":
            if len(given) != 1:
                raise ConfigError("--config takes one file")
            values = check_keys(stage, read_yaml(Path(given[0])), where=given[0]) | values
            continue
        if name not in keys and name.removeprefix("no_") in keys and not given:
            name, given = name.removeprefix("no_"), ["false"]
        key = keys.get(name)
        takes_list = key is not None and key.is_list
        takes_text = key is not None and "str" in key.type.split(" | ")
        if takes_list and len(given) == 1 and given[0].lstrip().startswith("["):
            values[name] = _parse_yaml(given[0], where=f"--{name}")
        elif takes_list and key and key.role == "rows" and any(item.startswith("{") for item in given):
            values[name] = [_parse_yaml(item, where=f"--{name}") if item.startswith("{") else item for item in given]
        elif takes_list and given != ["null"] and not (len(given) == 1 and takes_text):
            values[name] = given
        elif len(given) > 1:
            raise ConfigError(f"--{name} takes one value, got {len(given)}: {' '.join(given)}")
        else:
            values[name] = given[0] if given else True
    return check_keys(stage, values, where=f"{stage}")


def _parse_yaml(text: str, *, where: str) -> object:
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"{where} {text}: not YAML, as in [a, b] or {{path: a}}") from None


def help_text(stage: str, *, everything: bool) -> str:
    """The text of `--help`: an example and our own keys; `--help-all` adds those of TRL."""
    description = stages()[stage]
    own = {name: key for name, key in description.keys.items() if key.own and name not in PIPELINE_KEYS}
    others = {name: key for name, key in description.keys.items() if not key.own}
    lines = [f"stages/{stage}.py", "", "Example:", f"  {description.example}", "", "Keys of this stage:"]
    lines += [_help_line(name, key) for name, key in own.items()]
    if others:
        rest = ":" if everything else " (--help-all lists them), such as:"
        lines += ["", f"and {len(others)} keys of TRL and transformers, under their own names{rest}"]
        lines += [_help_line(name, key) for name, key in others.items() if everything or name in COMMON_KEYS]
    return "\n".join(lines)


def _help_line(name: str, key: StageKey) -> str:
    default = "required" if key.required else f"default: {json.dumps(key.default)}"
    head = f"  --{name} <{key.type.removeprefix('null | ')}>"
    first = " ".join(key.help.split()).split(". ")[0]
    return f"{head:<52} {first} ({default})" if len(head) <= 52 else f"{head}\n{'':<52} {first} ({default})"
