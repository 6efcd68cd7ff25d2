"""How a policy's scores on tasks differ from those of an earlier policy: the price of alignment.

The gate reads the non-inferiority condition from here: a task is not worse by more than delta where the lower end of
the change's 95 % interval is above -delta. All tasks have to hold, so their number needs no correction: a policy that
is worse on one of them passes with a chance of at most 2.5 %, whatever the others are.
"""

from collections.abc import Sequence
from pathlib import Path

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError, DataError
from engine.judging.comparison import Metric
from engine.tasks.grades import Grade, change_of, measures_of, points_by_measure, read_grades


def read_evaluation(folder: str) -> tuple[str, list[Grade]]:
    """The policy of a finished evaluation on tasks, and its grades. Raises DataError where the folder has none."""
    record = Artifact.read(Path(folder))
    if record is None or record.stage != "evaluate_tasks":
        raise DataError(f"{folder} holds no finished evaluation on tasks; run evaluate_tasks on that policy first")
    return str(record.keys.get("policy_step") or record.inputs.get("model_name_or_path", folder)), read_grades(
        Path(folder)
    )


def changes(now: Sequence[Grade], before: Sequence[Grade], other: str, *, seed: int) -> dict[str, Metric]:
    """`<measure>_vs_<other>` with `_low` and `_high` for every measure, over the same questions.

    Raises ConfigError where the questions differ.
    """
    metrics: dict[str, Metric] = {}
    earlier = points_by_measure(before)
    for measure, points in points_by_measure(now).items():
        if earlier.get(measure, {}).keys() != points.keys():
            raise ConfigError(
                f"{measure}: the {other} policy answered other questions: not comparable; evaluate all policies on the "
                "same questions"
            )
        change = change_of(list(points.values()), [earlier[measure][key] for key in points], seed=seed)
        name = f"{measure}_vs_{other}"
        metrics |= {name: change.mean, f"{name}_low": change.low, f"{name}_high": change.high}
    return metrics


def changes_to_best(folders: Sequence[str], best: str | None, *, seed: int) -> dict[str, Metric]:
    """The changes of the last folder's policy from the best so far, and the task that may have fallen most.

    `folders` are evaluations on tasks, of which one is that of the policy `best`. Raises ConfigError where none is.
    """
    evaluations = dict(map(read_evaluation, folders))
    *_, now = evaluations.values()
    if best is None:
        return {}
    if best not in evaluations:
        raise ConfigError(
            f"tasks: no folder is of {best}, the best policy so far; give the evaluations on tasks of all policies"
        )
    metrics = changes(now, evaluations[best], "best", seed=seed)
    own = [names[0] for names in measures_of(now).values()]
    most = min(own, key=lambda name: float(metrics[f"{name}_vs_best_low"] or 0.0))
    fall = -float(metrics[f"{most}_vs_best_low"] or 0.0)
    return metrics | {"most_task_fall": fall, "most_fallen_task": most}
