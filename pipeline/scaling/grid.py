"""An IsoFLOP grid as a plan: each budget of FLOPs is spent on models of several sizes, each an ordinary pretraining.

Every run has its own steps, from its budget, and the schedule of the recipe: the share of the warm-up is kept, and the
learning rate has decayed at the last token. The learning rate is the recipe's at the recipe's width. AdamW's is
inversely proportional to the width (muP, arXiv 2203.03466, for hidden matrices). With Muon both rates are the recipe's
at all widths: its updates have one spectral norm, and AdamW then trains embeddings and norms only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data_schemas.errors import ConfigError
from data_schemas.stage_keys import Keys, Values, with_defaults
from pipeline.builder import Plan
from pipeline.foundation import plan_data
from pipeline.launch.checks import check_recipe
from pipeline.recipe.names import Section
from pipeline.recipe.resolved import Recipe
from pipeline.scaling.sizes import Size, at_width, vocabulary_of
from pipeline.steps import Inputs, Output, Step, make_step, training_inputs

LEAST_RUNS, LEAST_WIDTHS = 8, 3  # of a fit, and of a parabola
LEAST_STEPS = 20  # of one run
SUFFIX = "-scale"  # of the run's name: it has a folder of its own beside the recipe's


@dataclass(frozen=True)
class GridRun:
    """One run of the grid."""

    step: str
    size: Size
    num_steps: int
    num_tokens: int
    learning_rate: float


@dataclass(frozen=True)
class Grid:
    recipe: Recipe
    steps: Sequence[Step]
    runs: Sequence[GridRun]


def plan_grid(recipe: Recipe, budgets: Sequence[float], widths: Sequence[int]) -> Grid:
    """The runs of all budgets and widths, the cheapest budget first. Raises ConfigError for a grid that no law can be
    fitted to, and for a run with too few steps."""
    budgets, widths = sorted(set(budgets)), sorted(set(widths))
    _check_grid(budgets, widths)
    keys, where = checked_keys(recipe)
    block, tokens_of_step = keys["block_size"], keys["block_size"] * keys["global_batch_size"]
    vocabulary = vocabulary_of(keys, where=where)
    architecture, place = keys["architecture"], f"{where}.architecture"
    base = at_width(architecture, _width_of(architecture), vocabulary=vocabulary, where=place)
    sizes = [at_width(architecture, width, vocabulary=vocabulary, where=place) for width in widths]
    runs: list[GridRun] = []
    for flops in budgets:
        for size in sizes:
            num_steps = round(flops / size.flops_per_token(block) / tokens_of_step)
            if num_steps < LEAST_STEPS:
                raise ConfigError(
                    f"--flops {flops:g} --width {size.width}: {num_steps} steps of {tokens_of_step} tokens, expected "
                    f"{LEAST_STEPS} or more; leave out large widths, or lower pretrain.global_batch_size"
                )
            name = f"pretrain.{flops:g}-{size.width}".replace("+", "")
            rate = keys["learning_rate"] * (1.0 if keys["muon_learning_rate"] else base.width / size.width)
            runs.append(GridRun(name, size, num_steps, num_steps * tokens_of_step, rate))
    plan = beside(recipe)
    plan_data(plan, is_evaluated=recipe.evaluates_policies, is_pretrained=True)
    inputs = training_inputs([plan.split("documents")])
    warmup = _warmup(keys, where=where)
    for run in runs:
        changed: Keys = {
            "architecture": run.size.architecture,
            "max_steps": run.num_steps,
            "learning_rate": run.learning_rate,
            "warmup_steps": warmup,
            **last_loss(run.num_steps),
        }
        add_step(plan, "pretrain", run.step, inputs=inputs, changed=changed)
    return Grid(plan.recipe, checked_steps(plan), runs)


def _check_grid(budgets: Sequence[float], widths: Sequence[int]) -> None:
    if len(widths) < LEAST_WIDTHS:
        raise ConfigError(f"--width: {len(widths)} given, expected {LEAST_WIDTHS} or more, for a parabola in a budget")
    if len(budgets) < 2 or len(budgets) * len(widths) < LEAST_RUNS:
        raise ConfigError(
            f"--flops and --width: {len(budgets)} budgets x {len(widths)} widths are {len(budgets) * len(widths)} "
            f"runs, expected two budgets and {LEAST_RUNS} runs or more"
        )


def checked_keys(recipe: Recipe) -> tuple[Keys, str]:
    """The keys of the recipe's pretraining, with defaults, and where they are. Raises ConfigError where it does not
    train from random weights."""
    where = f"{recipe.path}: pretrain"
    keys = with_defaults("pretrain", recipe.section("pretrain").keys)
    if recipe.base_model is not None:
        raise ConfigError(f"{recipe.path}: base_model is trained further; small runs begin with random weights")
    if not keys["architecture"]:
        raise ConfigError(f"{where}.architecture is missing; small runs begin with random weights")
    return keys, where


def _width_of(architecture: Values) -> int:
    return next((architecture[name] for name in ("hidden_size", "n_embd") if name in architecture), 0)


def _warmup(keys: Values, *, where: str) -> float:
    """The share of the steps that are warm-up. Raises ConfigError where it is not known."""
    steps = keys["warmup_steps"] or 0
    if steps < 1:
        return steps
    if keys["max_steps"] > 0:
        return steps / keys["max_steps"]
    raise ConfigError(f"{where}.warmup_steps={steps:g}: expected a share of the steps, as 0.03, or also max_steps")


def last_loss(num_steps: int) -> Keys:
    """The keys with which the loss of a run is that after its last step."""
    return {"eval_steps": num_steps, "keep": "last"}


def beside(recipe: Recipe) -> Plan:
    """An empty plan of a run beside the recipe's."""
    return Plan(recipe.model_copy(update={"name": recipe.name + SUFFIX}))


def add_step(plan: Plan, section: Section, name: str, *, inputs: Inputs, changed: Values) -> Output:
    """Adds a step of a section of which some values are changed. Returns its model."""
    values = {**plan.recipe.section(section).keys, **changed}
    plan.steps.append(make_step(plan.recipe, section, None, name=name, values=values, inputs=inputs, keys={}))
    return Output(name, "model")


def checked_steps(plan: Plan) -> list[Step]:
    """The steps of the plan. Raises what `check_recipe` raises."""
    steps = plan.used_steps()
    check_recipe(plan.recipe, steps)
    return steps
