"""The command line of a stage: its values, and the text of `--help`, by the keys of stage_keys.json."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.stage_keys import PIPELINE_KEYS, Keys, StageKey, check_keys, parse_yaml, stages
from data_schemas.yaml_files import read_yaml

COMMON_KEYS = (  # keys of TRL that --help shows
    "model_name_or_path output_dir learning_rate num_train_epochs max_steps max_length eval_steps "
    "per_device_train_batch_size lr_scheduler_type beta use_peft bf16 use_cpu"
).split()


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
            values[name] = parse_yaml(given[0], where=f"--{name}")
        elif key is not None and takes_list and key.role == "rows" and any(item.startswith("{") for item in given):
            values[name] = [parse_yaml(item, where=f"--{name}") if item.startswith("{") else item for item in given]
        elif takes_list and given != ["null"] and not (len(given) == 1 and takes_text):
            values[name] = given
        elif len(given) > 1:
            raise ConfigError(f"--{name} takes one value, got {len(given)}: {' '.join(given)}")
        else:
            values[name] = given[0] if given else True
    return check_keys(stage, values, where=f"{stage}")


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
    default += f"; {key.limits}" if key.limits else ""
    head = f"  --{name} <{key.type.removeprefix('null | ')}>"
    first = " ".join(key.help.split()).split(". ")[0]
    return f"{head:<52} {first} ({default})" if len(head) <= 52 else f"{head}\n{'':<52} {first} ({default})"
