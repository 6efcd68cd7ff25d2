"""Runs on random mixes of the recipe's documents as a plan: a curation and a pretraining each.

The first mix is the natural one, with the shares that the files have of all bytes. The others are drawn by the recipe's
seed from the Dirichlet distribution with these shares as its mean and a concentration of one for each file, so that for
equal shares every mix is as likely (RegMix, arXiv 2407.01492). All runs have the tokenizer of the first: losses in nats
a token of different tokenizers could not be compared.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.sources import Source, short_name
from data_schemas.stage_keys import Keys
from pipeline.builder import Plan
from pipeline.recipe.resolved import Recipe
from pipeline.scaling.grid import add_step, beside, checked_keys, checked_steps, last_loss
from pipeline.steps import Inputs, Output, Reference, Step, file_of

WEIGHTS_ARE_SHARES = 1e9  # temperature of a mix: a source of n words counts n^(1/T), which is 1
NO_RULES: Keys = {"exact_duplicates": False, "near_duplicates": None}  # where the recipe has no curation


@dataclass(frozen=True)
class MixRun:
    """One run on a mix."""

    step: str
    shares: Mapping[str, float]  # by source


@dataclass(frozen=True)
class MixPlan:
    recipe: Recipe
    steps: Sequence[Step]
    runs: Sequence[MixRun]


def plan_mixes(recipe: Recipe, num_mixes: int, held_out: str | None) -> MixPlan:
    """The natural mix and so many others. `held_out`: documents like those that the model is for; None: held-out rows
    of the recipe's. Raises ConfigError for too few mixes or files, and for a schedule without `max_steps`."""
    keys, where = checked_keys(recipe)
    if keys["max_steps"] < 1:
        raise ConfigError(f"{where}.max_steps is missing; all mixes are trained on as many tokens")
    natural = natural_shares(recipe)
    if num_mixes < len(natural) + 1:
        raise ConfigError(
            f"--mixes {num_mixes}: expected {len(natural) + 1} or more for {len(natural)} files of documents"
        )
    plan = beside(recipe)
    data = plan.add_data(is_evaluated=recipe.evaluates_policies, keeps_sources=True)
    evaluation: Reference = file_of(held_out) if held_out else Output(data, "documents.validation")
    rows: Inputs = {
        "documents": Output(data, "documents.train"),
        "evaluation_prompts": Output(data, "evaluation_prompts", optional=True),
    }
    curation = {} if recipe.section("curate").is_in_file else NO_RULES
    runs = [
        MixRun(f"pretrain.mix-{number}", shares)
        for number, shares in enumerate([natural, *islice(draw_mixes(natural, recipe.seed), num_mixes)])
    ]
    curated: list[Output] = []
    tokenizer: Reference | None = None
    for number, run in enumerate(runs):
        name = f"curate.mix-{number}"
        mix: Keys = {"mix_by": "source", "mix_weights": dict(run.shares), "mix_temperature": WEIGHTS_ARE_SHARES}
        add_step(plan, "curate", name, inputs=rows, changed=curation | mix)
        curated.append(Output(name, "documents.train"))
        if number == 0:
            add_run(plan, run, curated[0], evaluation, None, keys)
            given = keys["tokenizer_name_or_path"]
            tokenizer = None if given else Output(run.step, "model")
    for run, documents in zip(runs[1:], curated[1:], strict=True):
        add_run(plan, run, documents, evaluation, tokenizer, keys)
    return MixPlan(plan.recipe, checked_steps(plan), runs)


def natural_shares(recipe: Recipe) -> dict[str, float]:
    """The share that each file of documents has of their bytes. Raises ConfigError for fewer than two, and for one that
    is not on this machine."""
    where = f"{recipe.path}: data.documents"
    given = [Source.of(value) for value in recipe.section("data").keys.get("documents") or []]
    if len(given) < 2:
        raise ConfigError(f"{where}: {len(given)} files, expected two or more, which are mixed")
    sizes: dict[str, int] = {}
    for source in given:
        path = Path(source.path)
        if not path.exists():
            raise ConfigError(f"{where}: {source.path} is not on this machine, so its size is not known")
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sizes[short_name(source, given)] = sum(file.stat().st_size for file in files)
    if len(sizes) < len(given) or not all(sizes.values()):
        raise ConfigError(f"{where}: expected files with different names, none of them empty")
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


def draw_mixes(natural: Mapping[str, float], seed: int) -> Iterator[dict[str, float]]:
    """Mixes without end; the first ones are the same however many are taken. Shares have four digits."""
    draw = random.Random(f"{seed} mixes")
    while True:
        gammas = {name: draw.gammavariate(len(natural) * share, 1.0) for name, share in natural.items()}
        shares = {name: round(gamma / sum(gammas.values()), 4) for name, gamma in gammas.items()}
        largest = max(shares, key=lambda name: shares[name])
        yield shares | {largest: round(shares[largest] + 1 - sum(shares.values()), 4)}


def add_run(
    plan: Plan, run: MixRun, documents: Output, evaluation: Reference, tokenizer: Reference | None, keys: Keys
) -> None:
    """Adds the pretraining of a mix. `tokenizer`: that of another run; None: its own, or that of the recipe."""
    inputs: Inputs = {"train_data": [documents], "eval_data": [evaluation]}
    if tokenizer is not None:
        inputs = {**inputs, "tokenizer_name_or_path": tokenizer}
    add_step(plan, "pretrain", run.step, inputs=inputs, changed=last_loss(keys["max_steps"]))
