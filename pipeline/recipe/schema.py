"""A recipe is one YAML file that describes a complete run. It holds the stages' own keys, one section for each stage.

    name: demo
    rounds: 2
    base_model: models/SmolLM2-135M     # or a `pretrain:` section
    launch: {profile: zero3, num_processes: 8}
    data: {preferences: pairs.jsonl, chosen_as_instructions: 0.3}
    defaults: {max_length: 512}         # for every stage that has the key
    sft: {learning_rate: 1e-5}
    dpo: {beta: 0.1, launch: {profile: zero2}}
    by_round: {0: {sft: {num_train_epochs: 3}}}

The sections sft, reward_model and dpo may list variants. The section's model is then the average of their models:

    sft: {variants: [{learning_rate: 1e-5}, {human_share: 0.5}], average: {weights: greedy}}

Every mistake is reported as a ConfigError of one line. A path is relative to the working directory; if nothing exists
there, to the recipe's folder.
"""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, create_model

from data_schemas.endpoints import Endpoint, parse_endpoints
from data_schemas.errors import ConfigError
from data_schemas.stage_keys import Keys
from data_schemas.yaml_files import RefusedYaml, load_yaml, read_yaml
from pipeline.recipe.locations import expand, locate
from pipeline.recipe.names import Section, all_sections, runs_once, stages_of_a_round
from pipeline.recipe.resolved import Recipe, TypedSections, resolve
from pipeline.recipe.round_rules import check_rounds
from pipeline.recipe.sections import TypedSection, parse, type_defaults, type_section
from pipeline.recipe.settings import Settings

KEYS_OF_ROUNDS = (
    "rounds",
    "round_stages",
    "round_stages_from",
    "by_round",
    "first_sft",
    "refit_reward_model",
    "dpo_reference",
    "reward_model_from",
    "sft_from",
    "sft_batches",
    "average_with_best",
    "dpo_batch_decay",
    "annotate_policies",
    "sampling_policies",
)


class RecipeFile(Settings):
    """A recipe as its file writes it: the sections, which `_file_model` adds, are not typed yet."""

    defaults: Keys = Field(default_factory=dict)
    by_round: dict[int, dict[Section, Keys]] = Field(default_factory=dict)


@functools.cache
def _file_model() -> type[RecipeFile]:
    """RecipeFile with a field for every section; which there are is known from the table of the stages."""
    sections, of_a_round = tuple(all_sections()), tuple(stages_of_a_round())
    empty = dict.fromkeys(sections, (Keys, {})) | {"pretrain": (Keys | None, None)}
    return create_model(  # pyright: ignore[reportCallIssue] - it cannot see the fields of a mapping
        "RecipeFile",
        __base__=RecipeFile,
        round_stages=(list[Literal[of_a_round]], RecipeFile.model_fields["round_stages"]),  # pyright: ignore
        round_stages_from=(dict[int, list[Literal[of_a_round]]], RecipeFile.model_fields["round_stages_from"]),  # pyright: ignore
        by_round=(dict[int, dict[Literal[sections], Keys]], {}),  # pyright: ignore
        **empty,  # pyright: ignore[reportArgumentType]
    )


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads the recipe in `path`, with `key=value` overrides (dotted keys, YAML values).

    Every key is checked and typed here, once. Raises ConfigError for a file that is not YAML, an unknown key, a value
    of the wrong type, and a round whose stages lack something.
    """
    content = read_yaml(path)
    for override in overrides:
        _apply(override, content)
    for name in ("path", "content"):
        if name in content:
            raise ConfigError(f"{path}: unknown key {name!r}")
    given = copy.deepcopy(content)
    if content.get("stages") is not None:
        content = _without_rounds(content, where=str(path))
    if content.get("endpoints") is not None:  # by itself, since no error may show what might be a key
        content = content | {"endpoints": _endpoints(content["endpoints"], path)}
    recipe = _type_and_resolve(parse(_file_model(), {**content, "path": path, "content": given}, where=str(path)))
    check_rounds(recipe)
    _check_output_dir(recipe)
    return recipe


def _endpoints(values: object, path: Path) -> dict[str, Endpoint]:
    """The recipe's endpoints. Raises ConfigError where a section could mean a file of the same name."""
    endpoints = parse_endpoints(values, where=f"{path}: endpoints")
    for name in endpoints:
        if (located := Path(locate(name, path.absolute().parent, where=f"{path}: endpoints"))).exists():
            raise ConfigError(f"{path}: endpoints.{name}: {located} has this name too; rename the endpoint")
    return endpoints


def _check_output_dir(recipe: Recipe) -> None:
    """Raises ConfigError where the run's folder can't be made, since a file is in its place or above it."""
    for place in (recipe.folder, *recipe.folder.parents):
        if place.is_file():
            raise ConfigError(
                f"{recipe.path}: output_dir={recipe.output_dir!r}: {place} is a file; expected a folder, or a path "
                "where one can be made"
            )


def _without_rounds(content: Keys, *, where: str) -> Keys:
    """The content of a recipe with `stages`, which has no rounds. Raises ConfigError where it sets a key of rounds."""
    given = [name for name in KEYS_OF_ROUNDS if content.get(name)]
    if given:
        raise ConfigError(
            f"{where}: {given[0]} is a key of the rounds, and a recipe with `stages` has none; leave one of them out"
        )
    return content | {"rounds": 0}


def _type_and_resolve(file: RecipeFile) -> Recipe:
    """Types every section of the file and of `by_round` once, and combines them for each round."""
    folder = file.path.absolute().parent
    sections: dict[Section, TypedSection] = {}
    for name in all_sections():
        if (values := getattr(file, name)) is not None:
            sections[name] = type_section(name, values, folder, where=f"{file.path}: {name}")
    _check_by_round(file)
    by_round: dict[int, dict[Section, TypedSection]] = {
        number: {
            name: type_section(name, values, folder, where=f"{file.path}: by_round.{number}.{name}")
            for name, values in sections_of_round.items()
        }
        for number, sections_of_round in file.by_round.items()
    }
    in_file = frozenset(name for name in sections if name in file.model_fields_set)
    defaults = type_defaults(file.defaults, folder, where=f"{file.path}: defaults")
    settings = {name: getattr(file, name) for name in Settings.model_fields}
    settings["output_dir"] = expand(file.output_dir, Path.cwd(), where=f"{file.path}: output_dir")
    if file.base_model:
        settings["base_model"] = locate(file.base_model, folder, where=f"{file.path}: base_model")
    if file.reward_base:
        settings["reward_model_from"] = locate(file.reward_base, folder, where=f"{file.path}: reward_model_from")
    return resolve(Settings(**settings), TypedSections(defaults, sections, in_file, by_round))


def _check_by_round(file: RecipeFile) -> None:
    for number in file.round_stages_from:
        if number < 1:
            raise ConfigError(f"{file.path}: round_stages_from.{number}: rounds begin with 1")
    for number, sections in file.by_round.items():
        if not 0 <= number <= file.rounds:
            raise ConfigError(f"{file.path}: by_round.{number}: the run has rounds 0 to {file.rounds}")
        for name in sections:
            if runs_once(name):
                raise ConfigError(f"{file.path}: by_round.{number}.{name}: {name} runs once, before the rounds")
            if name in ("evaluate_tasks", "evaluate_policy"):
                raise ConfigError(f"{file.path}: by_round.{number}.{name}: all policies are judged the same way")


def shown_setting(override: str) -> str:
    """A `key=value` of the command line for a message: that of an endpoint without its value, which may be a key."""
    name, _, _ = override.partition("=")
    return f"{name}=…" if name.partition(".")[0] == "endpoints" else override


def _apply(override: str, content: Keys) -> None:
    """Sets one `key=value` of the command line in a recipe's content. Raises ConfigError where it cannot be set."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {override}: expected key=value, as in --set dpo.beta=0.2")
    if not text.strip():
        raise ConfigError(
            f"--set {override}: the value is empty; leave it out, or, where the key may be nothing, write {name}=null"
        )
    try:
        value = load_yaml(text)
    except RefusedYaml as error:
        raise ConfigError(f"--set {override}: {error.problem}") from None
    except yaml.YAMLError:
        raise ConfigError(f"--set {shown_setting(override)}: the value is not YAML; put it in quotes") from None
    mapping: dict[str | int, object] = content  # pyright: ignore[reportAssignmentType]
    *parents, last = (int(part) if part.isdigit() else part for part in name.split("."))
    for parent in parents:
        if mapping.get(parent) is None:
            mapping[parent] = {}
        inner = mapping[parent]
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {shown_setting(override)}: {parent} is not a section")
        mapping = inner
    mapping[last] = value
