"""Where a stage's numbers go: always to `metrics.jsonl`, and to the services that `report_to` names (trackers.py).

Every (step, key) is in metrics.jsonl once, also after a resume. A failure of a service is a warning, no error.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard, TypeVar

from data_schemas.files import write_atomically
from data_schemas.metrics import METRICS, read_metrics
from data_schemas.packages import is_installed, to_install
from engine.runtime import notices, trackers
from engine.runtime.trackers import Service, TrackedRun

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Tracker:
    """The logged values of one stage; only the first process writes them to a file (`active`)."""

    def __init__(self, folder: Path, *, active: bool) -> None:
        self.path = folder / METRICS
        self.active = active
        self.values = read_metrics(self.path)  # (step, key) -> value
        self.services: dict[str, Service] = {}  # by the name in report_to; one that fails is taken out

    def log(self, values: Mapping[str, object], *, step: int) -> None:
        """Appends the numbers among `values` that are not logged for this step yet."""
        fresh = {key: value for key, value in values.items() if _is_number(value) and (step, key) not in self.values}
        self.values.update({(step, key): value for key, value in fresh.items()})
        if not (self.active and fresh):
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **fresh}) + "\n")
        for name, service in list(self.services.items()):
            self._safely(name, lambda service=service: service.log(fresh, step=step))

    def log_record(self, metrics: Mapping[str, object]) -> None:
        """Logs the record's numbers, under the same names, of a stage that logged none while it ran."""
        if not self.values:
            self.log(metrics, step=0)

    def forget_after(self, step: int) -> None:
        """Drops what a killed attempt logged after the checkpoint that is resumed from."""
        self.values = {(at, key): value for (at, key), value in self.values.items() if at <= step}
        if self.active and (self.path.exists() or self.values):
            self.save(self.path.parent)

    def save(self, folder: Path) -> None:
        """Writes all values to the metrics.jsonl of a folder: a checkpoint has its own, from which a stage resumes."""
        rows: dict[int, dict[str, float]] = {}
        for (at, key), value in self.values.items():
            rows.setdefault(at, {})[key] = value
        lines = [json.dumps({"step": at, **row}) for at, row in rows.items()]
        write_atomically(folder / METRICS, "".join(line + "\n" for line in lines))

    def load(self, checkpoint: Path) -> None:
        """Takes the values that were saved with a checkpoint; metrics.jsonl may have lost some since."""
        if (checkpoint / METRICS).exists():
            self.values = read_metrics(checkpoint / METRICS)

    def history(self, key: str) -> dict[int, float]:
        """The values of one key by step, in order."""
        return {at: value for (at, name), value in sorted(self.values.items()) if name == key}

    def start(self, services: Sequence[str], run: TrackedRun) -> None:
        """Opens the services of `report_to`. One that is not installed, or can't be opened, is a warning."""
        for name in dict.fromkeys(services) if self.active else ():
            if name == "none":
                continue
            if not is_installed(name):
                notices.warn(
                    log,
                    "report_to: %s is not installed, so the numbers of this step are only in %s; %s",
                    name,
                    METRICS,
                    to_install(name),
                )
            elif service := self._safely(name, lambda name=name: trackers.start(name, run, lambda: self.values)):
                self.services[name] = service

    def finish(self) -> None:
        """Closes the services."""
        for name, service in self.services.items():
            self._safely(name, service.finish, is_last=True)
        self.services = {}

    def _safely(self, name: str, action: Callable[[], Result], *, is_last: bool = False) -> Result | None:
        try:
            return action()
        except Exception as error:  # whatever a service raises, the stage continues
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            notices.warn(log, "%s failed and is not used for the rest of this step: %s", name, first_line)
            if not is_last:
                self.services.pop(name, None)
            return None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
