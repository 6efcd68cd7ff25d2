"""YAML files that people write: read by the safe loader, with every key given once and within bounds of size.

The safe loader itself takes the last of two equal keys, follows aliases however often they multiply a value, and reads
`1:30` as 90, `010` as 8 and `1e-9` as text, as YAML 1.1 says. Here `1e-9` is a number, as in YAML 1.2, in JSON and in
Python, and text like it is written in quotes.
"""

import datetime
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_schemas.errors import ConfigError
from data_schemas.files import absent, check_regular
from data_schemas.text import shown

MAX_BYTES = 2_000_000  # of a file; reading them takes seconds
MAX_VALUES = 100_000  # keys and values of a document, those of an alias counted at each use
MAX_DEPTH = 50  # of lists and mappings inside each other


class RefusedYaml(yaml.MarkedYAMLError):
    """A document that YAML allows and we do not; `problem` is a complete message."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses a key that is given twice in one mapping, and numbers that mean others."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                name = str(key_node.value if key_node.tag.endswith(":merge") else self.construct_object(key_node))
                line = key_node.start_mark.line + 1
                if name in lines:
                    first = f" in line {lines[name]}" if lines[name] != line else ""
                    raise _refused(
                        key_node,
                        f"the key {shown(name)} is given twice, first{first or ' in this line'}; write each key once",
                    )
                lines[name] = line
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        """JSON writes a character beyond U+FFFF as two escapes, `\\ud83d\\ude42`; YAML reads them as two characters."""
        value = super().construct_yaml_str(node)
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _refused(node, "an escape is half of a character; write the character itself") from None

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        written = str(node.value).replace("_", "")
        if not re.match("[-+]?0[bx]", written) and (":" in written or int(written) != value):
            raise _refused_number(node, value)
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        if ":" in str(node.value):
            raise _refused_number(node, value)
        return value


class YamlDumper(yaml.SafeDumper):
    """Writes what the loader reads back to the same value."""


class _LineDumper(YamlDumper):
    """Writes the line breaks of a text as escapes."""


def _one_line(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_LineDumper.add_representer(str, _one_line)
_SCIENTIFIC = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z")
for _kind in (_Loader, YamlDumper, _LineDumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _refused(node: yaml.Node, problem: str) -> RefusedYaml:
    return RefusedYaml(problem=problem, problem_mark=node.start_mark)


def _refused_number(node: yaml.ScalarNode, value: float) -> RefusedYaml:
    text = shown(node.value)
    return _refused(node, f"YAML reads {text} as the number {value}; write it as a decimal number, or in quotes")


def _check_bounds(root: yaml.Node) -> None:
    """Raises RefusedYaml for an anchor that contains itself, and for a document that is too large or too deep."""
    sizes: dict[int, int] = {}  # of a finished node, as often as it is used
    above: set[int] = set()  # nodes that the present one is inside of

    def size(node: yaml.Node) -> int:
        if id(node) in above:
            raise _refused(node, "an anchor contains itself; write repeated values out")
        if id(node) in sizes:
            return sizes[id(node)]
        if len(above) >= MAX_DEPTH:
            raise _refused(node, f"more than {MAX_DEPTH} lists and mappings are inside each other; write them flat")
        above.add(id(node))
        total = 1
        for child in _children(node):
            total += size(child)
            if total > MAX_VALUES:
                raise _refused(
                    node, f"more than {MAX_VALUES} values, those of aliases counted at each use; is it a data file?"
                )
        above.discard(id(node))
        sizes[id(node)] = total
        return total

    size(root)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def load_yaml(text: str) -> Any:
    """The value of a YAML text, by the safe loader.

    Raises YAMLError, also for impossible dates, for 1000 brackets and for a tag without a meaning; RefusedYaml for a
    key that is given twice, for a number of base 8 or 60, and for a document beyond the bounds.
    """
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_bounds(root)
        return loader.construct_document(root)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None
    finally:
        if loader is not None:
            loader.dispose()


def dump_yaml(value: object, **style: Any) -> str:
    """The value as a YAML text, which `load_yaml` reads back to an equal one. `style`: options of yaml.dump.

    Raises YAMLError for a value that is not plain.
    """
    return yaml.dump(value, **({"Dumper": YamlDumper, "sort_keys": False, "allow_unicode": True} | style))


def dump_line(value: object) -> str:
    """The value as YAML in one line. Raises YAMLError for a value that is not plain."""
    text = dump_yaml(value, Dumper=_LineDumper, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()  # the end of a document that is one word


def read_yaml(path: Path) -> dict[str, Any]:
    """The YAML mapping in a file. Raises ConfigError, with line and column, where there is none."""
    try:
        content = load_yaml(_read_text(path))
    except RefusedYaml as error:
        raise ConfigError(f"{path}{_place(error)}: {error.problem}") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{path}{_place(error)} is not YAML: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {kind_of(content)}, expected `key: value` lines")
    return content


def _read_text(path: Path) -> str:
    try:
        check_regular(path)
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(
                f"{path} has more than {MAX_BYTES} bytes, expected a YAML file of keys; is it a data file?"
            )
        return content.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} {absent(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__})") from None


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def kind_of(value: object) -> str:
    """What kind of value it is, in words."""
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    names |= {datetime.date: "a date", datetime.datetime: "a time", bytes: "bytes", set: "a set"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def unquoted_hint(value: object) -> str:
    """The remedy where text was expected and YAML read a boolean or a date; empty for another value."""
    if isinstance(value, datetime.date):
        return "; YAML reads an unquoted date as a date, not as text: write it in quotes"
    if value is False:
        return '; YAML reads an unquoted no, off or false as a boolean: write it in quotes, as in "no"'
    if value is True:
        return '; YAML reads an unquoted yes, on or true as a boolean: write it in quotes, as in "yes"'
    return ""
