"""A run that waits for people: for whom, how far they are, where their pages are, and where their files belong."""

from pathlib import Path

from data_schemas.errors import DataError
from data_schemas.people import FOLDER, WAITING, Batch, read_labels, work_of
from data_schemas.text import printable
from pipeline.report.live import short_path
from pipeline.state.summary import Summary


def lines(summary: Summary, folder: Path) -> list[str]:
    """The lines for the steps that wait for people; none where no step does. `folder` is that of the run."""
    found: list[str] = []
    for step in summary["steps"]:
        if step["state"] == WAITING and step["folder"] and (batch := Batch.read(folder / step["folder"] / FOLDER)):
            found += _of_step(step["name"], folder / step["folder"] / FOLDER, batch)
    return found


def _of_step(name: str, folder: Path, batch: Batch) -> list[str]:
    problem = ""
    try:
        labels = read_labels(folder, batch)
    except DataError as error:
        labels, problem = {person: [] for person in batch.people}, printable(str(error))
    work = work_of(folder, batch, labels)
    num_done, num_rows = sum(one.num_done for one in work), sum(one.num_rows for one in work)
    found = [f"{name} waits for people: {num_done} of {num_rows} comparisons are done"]
    found += [f"  {one.name}: {one.num_done} of {one.num_rows}, page: {short_path(one.page)}" for one in work]
    found.append(f"  put the files that the pages save into {short_path(folder)}")
    return found + ([f"  problem: {problem}"] if problem else [])


def show(summary: Summary, folder: Path, to_go_on: str) -> None:
    """Prints what a run waits for, and the command that goes on."""
    for line in lines(summary, folder):
        print(line)
    print(f"then: {to_go_on}")
