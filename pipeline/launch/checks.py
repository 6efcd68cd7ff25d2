"""Checks of a recipe and its plan before anything is launched, without torch. Each problem is one UserError."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from data_schemas.column_checks import check_columns
from data_schemas.endpoints import ENDPOINT_KEYS
from data_schemas.errors import ConfigError, DataError, UnknownColumns, UserError
from data_schemas.files import DOES_NOT_EXIST, absent, check_regular, exists, read_json
from data_schemas.formats import format_of
from data_schemas.functions import find_module
from data_schemas.key_rules import check_batch
from data_schemas.model_sizes import check_model_config, check_tokenizer_size
from data_schemas.stage_keys import stages, with_defaults
from data_schemas.synonyms import read_synonyms
from pipeline.launch.machine import check_devices, place_of_launch
from pipeline.recipe.resolved import Recipe
from pipeline.steps import REWARD_BASE, SCORERS, File, Model, Step

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_recipe(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Raises ConfigError for the first mistake that would stop a step, DataError for a file with wrong content."""
    _check_data(recipe)
    _check_inputs(recipe, steps)
    for step in steps:
        for name, value in step.keys.items():
            if value is not None and stages()[step.stage].keys[name].role == "function":
                for function in value if isinstance(value, list) else [value]:
                    _check_function(recipe, step, name, function)
        _check_launch(recipe, step)
        _check_batch(recipe, step)


def _check_function(recipe: Recipe, step: Step, key: str, function: str) -> None:
    try:
        find_module(function, recipe.path.absolute().parent)
    except UserError as error:
        raise ConfigError(f"{recipe.path}: {step.section}.{key}: {error}") from None


def _check_data(recipe: Recipe) -> None:
    """The data that the plan needs: documents for pretraining, instructions, prompts, and pairs for a judge."""
    data, where = recipe.section("data").keys, recipe.path
    is_generated = bool(data.get("make_data"))
    if recipe.base_model is None and not recipe.section("pretrain").is_in_file:
        raise ConfigError(f"{where}: base_model is missing; give a folder or a hub name, or a section pretrain")
    is_pretrained = recipe.section("pretrain").is_in_file or "pretrain" in (recipe.stages or [])
    if is_pretrained and not (is_generated or data.get("documents")):
        raise ConfigError(
            f"{where}: data.documents is missing; pretrain needs text: give it, or base_model in place of pretrain"
        )
    if recipe.stages is not None:
        _check_data_of_one_pass(recipe, recipe.stages)
        return
    in_rounds = any("sft" in recipe.stages_of_round(number) for number in range(1, recipe.rounds + 1))
    if recipe.first_sft or (recipe.human_share and in_rounds):
        chosen_answers = recipe.has_preferences and data.get("chosen_as_instructions")
        if not (is_generated or data.get("instructions") or chosen_answers):
            raise ConfigError(
                f"{where}: data.instructions is missing; give it, or data.preferences with chosen_as_instructions > 0"
            )
    elif not (is_generated or data.get("prompts") or data.get("instructions") or recipe.has_preferences):
        raise ConfigError(f"{where}: data.prompts is missing; no other data has prompts to answer")
    if recipe.evaluates_policies:
        _check_judge(recipe)


def _check_data_of_one_pass(recipe: Recipe, stages: Sequence[str]) -> None:
    """The data that the stages of a run without rounds need."""
    data, where = recipe.section("data").keys, recipe.path
    if "pretrain" in stages and recipe.base_model is None and not recipe.section("pretrain").keys.get("architecture"):
        raise ConfigError(f"{where}: base_model is missing (or pretrain.architecture, for random weights)")
    chosen_answers = recipe.has_preferences and data.get("chosen_as_instructions")
    if "sft" in stages and not (data.get("make_data") or data.get("instructions") or chosen_answers):
        raise ConfigError(f"{where}: data.instructions is missing; sft needs conversations")
    for stage in ("reward_model", "dpo"):
        if stage in stages and not recipe.has_preferences:
            raise ConfigError(f"{where}: data.preferences is missing; {stage} needs preference pairs")
    if "rl" in stages and not (
        data.get("make_data") or data.get("prompts") or data.get("instructions") or recipe.has_preferences
    ):
        raise ConfigError(f"{where}: data.prompts is missing; rl needs prompts to answer")
    if "evaluate_policy" in stages and recipe.has_judge:
        _check_judge(recipe)


def _check_judge(recipe: Recipe) -> None:
    """The judge of the policies must exist, and must not be a model that a round optimises."""
    data, where = recipe.section("data").keys, recipe.path
    judge = recipe.section("evaluate_policy").keys.get("judge_model")
    for number in range(1, recipe.rounds + 1) if judge else ():
        if judge in recipe.named_reward_models(number):
            raise ConfigError(
                f"{where}: evaluate_policy.judge_model={judge!r} is optimised in round {number}, so its scores of "
                "later policies would be too high; give another model"
            )
    if recipe.names_judge:
        return
    if not recipe.has_preferences:
        raise ConfigError(
            f"{where}: evaluate_policy.judge_function, judge_model or data.preferences is missing; "
            "one of them has to judge the policies"
        )
    if not data.get("judge_share"):
        raise ConfigError(
            f"{where}: data.judge_share is 0, but without evaluate_policy.judge_function or judge_model "
            "the judge is trained on that share of the preference pairs; try 0.2"
        )


def _check_inputs(recipe: Recipe, steps: Sequence[Step]) -> None:
    template = recipe.section("prepare_base").keys.get("chat_template")
    if template and template.endswith(".jinja") and not Path(template).is_file():
        raise ConfigError(f"{recipe.path}: prepare_base.chat_template={template!r} does not exist")
    for step in steps:
        for key, references in step.inputs.items():
            where = f"{step.section}.{key}"
            if step.stage == "prepare_base":
                where = "reward_model_from" if step.name == REWARD_BASE else "base_model"
            for reference in references:
                if isinstance(reference, File | Model):
                    _check_input(
                        step, key, reference, has_template=template is not None, where=f"{recipe.path}: {where}"
                    )


def _check_input(step: Step, key: str, given: File | Model, *, has_template: bool, where: str) -> None:
    path = Path(given.path)
    if not exists(path):
        is_on_hub = given.source.is_on_hub() if isinstance(given, File) else _looks_like_hub_name(given.path)
        if not is_on_hub:
            hint = "; no endpoint of the recipe has this name either" if key in ENDPOINT_KEYS else ""
            why = absent(path)
            places = f", neither in {Path.cwd()} nor beside the recipe" if why == DOES_NOT_EXIST else ""
            expected = "; expected base, best or a model" if step.name == REWARD_BASE else ""
            raise ConfigError(f"{where}={given.path!r} {why}{places}{hint}{expected}")
    elif isinstance(given, File) and step.stage == "prepare_data":
        try:
            check_columns(given.source, key)
        except UnknownColumns as error:
            hint = f"`alignloop data {shlex.quote(given.path)}` shows what to write"
            raise DataError(f"{where}: {error}; {hint}") from None
        except UserError as error:
            raise DataError(f"{where}: {error}") from None
    elif isinstance(given, File) and step.stage in ("curate", "paraphrase"):
        try:
            _check_file_of_curation(key, given)
        except UserError as error:
            raise DataError(f"{where}: {error}") from None
    elif isinstance(given, Model):
        if step.name == REWARD_BASE and _has_score_head(path):
            raise ConfigError(
                f"{where}={path} is a reward model already; name it as rejection_sampling.reward_model and "
                "leave reward_model out of round_stages, or give the model that it was trained from"
            )
        needs_template = (step.stage == "prepare_base" and not has_template) or key in ENDPOINT_KEYS
        check_model_folder(
            path, where=where, needs_template=needs_template, only_tokenizer=key == "tokenizer_name_or_path"
        )
        if key in SCORERS:
            _check_scorer(path, where=where)


def _check_scorer(folder: Path, *, where: str) -> None:
    """Raises ConfigError where a model cannot score answers: it has no score head, or no template to read them in."""
    architectures = _architectures(folder)
    if architectures and not _has_score_head(folder):
        raise ConfigError(
            f"{where}={folder} is no reward model: its config.json has {', '.join(architectures)}, expected a model "
            "for sequence classification, as the stage reward_model trains it"
        )
    if not _has_template(folder):
        raise ConfigError(
            f"{where}={folder} has no chat template, in which a reward model reads answers; add the one that it was "
            "trained with to the folder, as chat_template.jinja"
        )


def _has_score_head(folder: Path) -> bool:
    return any("SequenceClassification" in name for name in _architectures(folder))


def _architectures(folder: Path) -> list[str]:
    config = read_json(folder / "config.json") or {}
    return [str(name) for name in config.get("architectures") or []]


def _check_file_of_curation(key: str, given: File) -> None:
    if key == "synonyms":
        read_synonyms(Path(given.path))
    elif key == "decontaminate_against":
        check_columns(given.source, "prompts")


def _looks_like_hub_name(name: str) -> bool:
    owner = name.partition("/")[0]
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None
    return is_name and not format_of(Path(name)) and not Path(owner).exists()


def check_model_folder(folder: Path, *, where: str, needs_template: bool, only_tokenizer: bool = False) -> None:
    """Raises DataError where the folder lacks a config, weights in safetensors or a tokenizer.

    Raises ConfigError where the folder is a file, or where neither it nor the recipe has a needed chat template.
    """
    check_regular(folder)
    if not folder.is_dir():
        raise ConfigError(f"{where}={folder} is a file, expected a model folder")
    for file in folder.iterdir():
        check_regular(file)
    if not only_tokenizer and not (folder / "config.json").is_file():
        raise DataError(f"{where}={folder} has no config.json; expected a model folder")
    if not only_tokenizer:
        check_model_config(folder, where=where)
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    if not only_tokenizer and pickled and not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{where}={folder} has no weights in safetensors; loading {pickled[0]} could run code stored in it: "
            "convert it to safetensors first"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise DataError(f"{where}={folder} has no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
    if not only_tokenizer:
        check_tokenizer_size(folder, where=where)
    if needs_template and not _has_template(folder):
        raise ConfigError(
            f"{where}={folder} has no chat template; give one, as in prepare_base: {{chat_template: chatml}}"
        )


def _has_template(folder: Path) -> bool:
    in_config = (read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    return bool(in_config) or (folder / "chat_template.jinja").is_file()


def _check_launch(recipe: Recipe, step: Step) -> None:
    launch, where = step.launch, place_of_launch(recipe, step)
    if launch.profile == "single" and launch.num_processes > 1:
        raise ConfigError(f"{where}: num_processes={launch.num_processes} with profile single; try profile: ddp")
    check_devices(launch, where=where)
    if launch.profile == "fsdp2":
        _check_fsdp2(step, where=where)
    if launch.divides_weights and (step.keys.get("load_in_4bit") or step.keys.get("load_in_8bit")):
        raise ConfigError(
            f"{where}: profile {launch.profile} divides weights among processes, which quantized ones do not support; "
            "try profile: zero2, or leave load_in_4bit and load_in_8bit out"
        )
    if launch.num_machines == 1:
        return
    if launch.profile == "single":
        raise ConfigError(f"{where}: num_machines={launch.num_machines} with profile single; try profile: zero3")
    if launch.num_processes % launch.num_machines:
        raise ConfigError(
            f"{where}: num_processes={launch.num_processes} counts the processes of all machines; "
            f"expected a multiple of num_machines={launch.num_machines}"
        )
    if launch.wrapper is None:
        raise ConfigError(
            f"{where}: wrapper is missing; give a command that starts another on every machine, "
            f'as in "srun --nodes={launch.num_machines} --ntasks-per-node=1"'
        )
    if launch.main_process_ip is None:
        raise ConfigError(
            f"{where}: main_process_ip is missing; give the address of machine 0, "
            "as in --set launch.main_process_ip=$(hostname)"
        )


def _check_fsdp2(step: Step, *, where: str) -> None:
    launch = step.launch
    if launch.device == "cpu":
        raise ConfigError(
            f"{where}: profile fsdp2 needs GPUs, since accelerate runs it as ddp on a CPU; use profile ddp or zero3"
        )
    if launch.num_processes == 1:
        raise ConfigError(f"{where}: profile fsdp2 with num_processes=1 has nothing to divide; use profile single")
    if stages()[step.stage].traits.kind == "generates":
        raise ConfigError(f"{where}: {step.stage} generates answers, which profile fsdp2 does not support; use ddp")
    if step.stage == "rl":
        raise ConfigError(
            f"{where}: rl samples answers from the weights in memory, which profile fsdp2 divides; use profile ddp or "
            "zero3"
        )
    if step.keys.get("muon_learning_rate") is not None:
        raise ConfigError(
            f"{where}: muon_learning_rate needs complete matrices, which profile fsdp2 divides; use profile ddp, or "
            "leave muon_learning_rate out"
        )


def _check_batch(recipe: Recipe, step: Step) -> None:
    keys = with_defaults(step.stage, step.keys)
    rows, processes = keys.get("global_batch_size"), step.launch.num_processes
    if rows is None:
        return
    # Only a micro-batch in the recipe counts: where none is given, the stage chooses one that divides the rows.
    try:
        check_batch(rows, step.keys.get("per_device_train_batch_size"), processes=processes)
    except UserError as error:
        raise ConfigError(f"{recipe.path}: {step.section}.{error}") from None
