"""Whether the splits that prepare_data wrote, and curation has left, have the rows that later steps need, before any
model is loaded."""

from collections.abc import Iterator

from data_schemas.errors import ConfigError, DataError, UserError
from data_schemas.stage_keys import stages, with_defaults
from pipeline.state.run import Run, record_of
from pipeline.steps import Output, Step

ROW_STEPS = ("prepare_data", "curate")  # the steps that write the rows of the recipe's files
# A split of prepare_data, by the end of its name -> what gives it more rows.
REMEDIES = {
    "judge": "raise data.judge_share, or give more data.preferences",
    "evaluation_prompts": "raise data.evaluation_share, or give data.evaluation_prompts",
}


def check_splits(run: Run, data: Step) -> None:
    """Raises DataError where a split of the step `data` that a later one needs has no row, or one that is not enough to
    hold one out.

    Raises ConfigError where a step's batch has more rows than its split, and can't be lowered to them.
    """
    counts = record_of(run.folder(data.name)).metrics
    for step in run.steps:
        for output in _outputs(step, data.name):
            try:
                run.resolve(output)
            except UserError:
                raise DataError(
                    f"{step.name} needs {output.name}, and the data leave it no row ({_all_counts(counts)}); "
                    f"{remedy_for(output.name)}"
                ) from None
        trained = [item for item in step.inputs.get("train_data", []) if isinstance(item, Output)]
        if trained and all(item.step == data.name for item in trained):
            names = [item.name for item in trained]
            _check_training(run, step, names, sum(int(counts.get(name) or 0) for name in names))


def remedy_for(output: str) -> str:
    """What gives an output of prepare_data more rows."""
    kind, _, side = output.rpartition(".")
    return REMEDIES.get(side or output) or f"give more data.{kind}, or lower the shares that are held out of them"


def _outputs(step: Step, name: str) -> Iterator[Output]:
    """What a step needs of the step with this name."""
    for references in step.inputs.values():
        for item in references:
            if isinstance(item, Output) and item.step == name and not item.optional:
                yield item


def _check_training(run: Run, step: Step, names: list[str], rows: int) -> None:
    """`rows` is the number of rows that the step reads to train on; pretraining cuts them into others."""
    held_out = [run.resolve(item) for item in step.inputs.get("eval_data", [])]
    if rows == 1 and not any(held_out):
        raise DataError(
            f"{step.name} needs two rows, one of them to hold out, and {', '.join(names)} has 1; {remedy_for(names[0])}"
        )
    keys, processes = with_defaults(step.stage, step.keys), step.launch.num_processes
    batch = keys.get("global_batch_size")
    makes_own_rows = not stages()[step.stage].traits.has_variants or keys.get("ranking_pairs") == "all"
    if not rows or batch is None or rows >= batch or makes_own_rows:
        return
    if rows % processes or step.launch.divides_states or keys.get("packing"):
        raise ConfigError(
            f"{run.recipe.path}: {step.section}.global_batch_size={batch}, and {step.name} has {rows} training rows "
            f"({', '.join(names)}); lower it to {max(1, rows // processes) * processes} or less, or give more rows"
        )


def _all_counts(counts: object) -> str:
    """The rows of every split that has any, as in `instructions.train 34, prompts.train 34`."""
    numbers = counts.items() if isinstance(counts, dict) else ()
    return ", ".join(f"{name} {count}" for name, count in numbers if count and isinstance(count, int)) or "no rows"
