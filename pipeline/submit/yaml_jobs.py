"""Job files in YAML: how they are written, and what a site adds to each, as its image and its volumes."""

from pathlib import Path
from typing import Any

import yaml

from data_schemas.yaml_files import YamlDumper, dump_yaml, read_yaml


class _Dumper(YamlDumper):
    """Writes text of several lines as a block, so that a script can be read."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def dump(content: dict[str, Any]) -> str:
    return dump_yaml(content, Dumper=_Dumper, width=1000)


def read_site(path: Path | None) -> dict[str, Any]:
    """The content of the file; empty without one. Raises ConfigError for a file that is not a YAML mapping."""
    return {} if path is None else read_yaml(path)


def merged(ours: Any, site: Any) -> Any:
    """The site's value in ours, as Kubernetes merges a patch: mappings are merged by key, lists by the `name` of their
    entries, and of other values the site's is used."""
    if isinstance(ours, dict) and isinstance(site, dict):
        return ours | {key: merged(ours[key], value) if key in ours else value for key, value in site.items()}
    if isinstance(ours, list) and isinstance(site, list) and all(map(_name, [*ours, *site])):
        places = {_name(entry): place for place, entry in enumerate(ours)}
        entries = list(ours)
        for entry in site:
            place = places.get(_name(entry))
            if place is None:
                entries.append(entry)
            else:
                entries[place] = merged(entries[place], entry)
        return entries
    return site


def _name(entry: Any) -> str | None:
    return entry.get("name") if isinstance(entry, dict) else None
