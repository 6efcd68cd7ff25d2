"""Where a stage's numbers go: always to `metrics.jsonl`, and to wandb and TensorBoard where `report_to` names them.

Every (step, key) is in metrics.jsonl and in TensorBoard's events once, also after a resume. A failure of either tracker
is a warning, no error.
"""

import contextlib
import json
import logging
import netrc
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, TypeVar

from data_schemas.files import write_atomically
from engine.runtime import notices

if TYPE_CHECKING:  # wandb takes a second to import
    import wandb
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)
Result = TypeVar("Result")

FILE = "metrics.jsonl"
EVENTS = "tensorboard"  # the folder of TensorBoard's events, in the stage's folder
SECONDS_OF_EVENTS = 10  # after which TensorBoard's writer writes what it has


class Tracker:
    """The logged values of one stage; only the first process writes them to a file (`active`)."""

    def __init__(self, folder: Path, *, active: bool) -> None:
        self.path = folder / FILE
        self.active = active
        self.values = _read(self.path)  # (step, key) -> value
        self._run: wandb.Run | None = None
        self._events: Path | None = None  # where the writer below is opened, with the first values
        self._writer: SummaryWriter | None = None

    def log(self, values: Mapping[str, object], *, step: int) -> None:
        """Appends the numbers among `values` that are not logged for this step yet."""
        fresh = {key: value for key, value in values.items() if _is_number(value) and (step, key) not in self.values}
        self.values.update({(step, key): value for key, value in fresh.items()})
        if not (self.active and fresh):
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **fresh}) + "\n")
        if (run := self._run) is not None:
            self._safely("wandb", lambda: run.log({**fresh, "step": step}))
        if self._writer is not None:
            self._safely("tensorboard", lambda: self._add({(step, key): value for key, value in fresh.items()}))
        elif self._events is not None:
            self._safely("tensorboard", self._open_events)

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
        write_atomically(folder / FILE, "".join(line + "\n" for line in lines))

    def load(self, checkpoint: Path) -> None:
        """Takes the values that were saved with a checkpoint; metrics.jsonl may have lost some since."""
        if (checkpoint / FILE).exists():
            self.values = _read(checkpoint / FILE)

    def history(self, key: str) -> dict[int, float]:
        """The values of one key by step, in order."""
        return {at: value for (at, name), value in sorted(self.values.items()) if name == key}

    def start_wandb(self, folder: Path, *, name: str, group: str, config: Mapping[str, object]) -> None:
        """Starts one wandb run for the step, offline where no key is set; never prompts, never fails the stage."""
        if not self.active:
            return

        def start() -> "wandb.Run":
            import wandb

            mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", "alignloop"),
                id=_run_id(folder),
                name=name,
                group=group or None,
                dir=str(folder),
                config=dict(config),
                mode=mode,  # pyright: ignore[reportArgumentType]
                resume="allow" if mode == "online" else None,
                settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
            )

        self._run = self._safely("wandb", start)

    def start_tensorboard(self, folder: Path) -> None:
        """Writes events for TensorBoard into `tensorboard/` from the next value on; never fails the stage."""
        if self.active:
            self._events = folder / EVENTS

    def _open_events(self) -> None:
        """Begins the events again with all values so far: a killed attempt may have written some that are computed
        again, and lost others."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        assert self._events is not None
        shutil.rmtree(self._events, ignore_errors=True)
        self._writer = SummaryWriter(str(self._events), flush_secs=SECONDS_OF_EVENTS)
        self._add(self.values)

    def _add(self, values: Mapping[tuple[int, str], float]) -> None:
        assert self._writer is not None
        for (step, key), value in sorted(values.items()):
            self._writer.add_scalar(key, value, step)

    def finish(self) -> None:
        """Closes the wandb run and TensorBoard's events."""
        if self._run is not None:
            self._safely("wandb", self._run.finish)
        if self._writer is not None:
            self._safely("tensorboard", self._writer.close)
        self._run = self._writer = self._events = None

    def _safely(self, tracker: str, action: Callable[[], Result]) -> Result | None:
        try:
            return action()
        except Exception as error:  # whatever a tracker raises, the stage continues
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            notices.warn(log, "%s failed and is not used for the rest of this step: %s", tracker, first_line)
            if tracker == "wandb":
                self._run = None
            else:
                self._writer = self._events = None
            return None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read(path: Path) -> dict[tuple[int, str], float]:
    """What an earlier attempt logged; a last line that a crash cut off is ignored."""
    values: dict[tuple[int, str], float] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                if isinstance(row, dict) and "step" in row:
                    step = row.pop("step")
                    values.update({(step, key): value for key, value in row.items()})
    return values


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(netrc.netrc().authenticators("api.wandb.ai"))
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(folder: Path) -> str:
    """A random id, unique among all runs; kept in the folder, so that it stays the same over resumes."""
    path = folder / "wandb_id.txt"
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8").strip()
