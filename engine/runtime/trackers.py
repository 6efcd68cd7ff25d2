"""The tracking services that `report_to` may name: wandb, TensorBoard, trackio and MLflow, each behind `Service`.

Each step is one run of the service, in the group (trackio: project, MLflow: experiment) of the loop's run. A service
gets the keys of metrics.jsonl under the same names. Without a server or a key everything stays on this machine.
"""

import netrc
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from data_schemas.files import write_atomically

if TYPE_CHECKING:  # each takes a second or more to import
    import wandb

EVENTS = "tensorboard"  # the folder of TensorBoard's events, in the stage's folder
MLFLOW_STORE, MLFLOW_FILES = "mlflow.db", "mlflow-files"  # MLflow's database and files, in the run's folder
SECONDS_OF_EVENTS = 10  # after which TensorBoard's writer writes what it has
SECONDS_TO_START, SECONDS_TO_FINISH = 30.0, 60.0  # for wandb to reach its server, and to upload the rest at the end
LONGEST_PARAM, MOST_PARAMS = 6000, 100  # characters of a value, values of one call: MLflow's limits
Logged = Mapping[tuple[int, str], float]  # (step, key) -> value


@dataclass(frozen=True)
class TrackedRun:
    """What a service is told of a step before its first number."""

    folder: Path  # that the step writes
    name: str  # of the step, as in round-1.dpo
    group: str = ""  # name of the loop's run
    config: Mapping[str, object] = field(default_factory=dict)


class Service(Protocol):
    """A tracking service with one open run. Whatever it raises is a warning, and it is not used again."""

    def log(self, values: Mapping[str, float], *, step: int) -> None: ...
    def finish(self) -> None: ...


def start(service: str, run: TrackedRun, logged: Callable[[], Logged]) -> Service:
    """Opens the run of a service. `logged` gives all numbers so far, those of earlier attempts included."""
    match service:
        case "wandb":
            return Wandb(run)
        case "tensorboard":
            return TensorBoard(run, logged)
        case "trackio":
            return Trackio(run)
        case _:
            return MLflow(run)


class Wandb:
    """One wandb run, offline where no key is set; it never prompts."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = start_wandb(run)
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self.run.log({**values, "step": step})

    def finish(self) -> None:
        self.run.finish()


def start_wandb(run: TrackedRun) -> "wandb.Run":
    """A wandb run in `wandb/` of the folder. Its id stays the same over resumes."""
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "alignloop"),
        id=_kept_id(run.folder / "wandb_id.txt"),
        name=run.name,
        group=run.group or None,
        dir=str(run.folder),
        config=dict(run.config),
        mode=mode,  # pyright: ignore[reportArgumentType]
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            init_timeout=SECONDS_TO_START,
            finish_timeout=SECONDS_TO_FINISH,
        ),
    )


class TensorBoard:
    """Events in `tensorboard/` of the step's folder, in which every (step, key) is once, also after a resume."""

    def __init__(self, run: TrackedRun, logged: Callable[[], Logged]) -> None:
        self.folder, self.logged = run.folder / EVENTS, logged
        self.writer = None  # opened with the first numbers

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        if self.writer is not None:
            self._add({(step, key): value for key, value in values.items()})
            return
        from torch.utils.tensorboard import SummaryWriter

        # A killed attempt may have written some numbers that are computed again, and lost others.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.writer = SummaryWriter(str(self.folder), flush_secs=SECONDS_OF_EVENTS)
        self._add(self.logged())

    def _add(self, values: Logged) -> None:
        assert self.writer is not None
        for (step, key), value in sorted(values.items()):
            self.writer.add_scalar(key, value, step)

    def finish(self) -> None:
        if self.writer is not None:
            self.writer.close()


class Trackio:
    """A trackio run in the project of the loop's run. It is in TRACKIO_DIR, and stays local unless a space is set."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.run = trackio.init(
            project=run.group or "alignloop", name=run.name, config=dict(run.config), resume="allow", embed=False
        )

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow in the experiment of the loop's run: at MLFLOW_TRACKING_URI, else in `mlflow.db`."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it is on otherwise
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self.make_metric = Metric
        runs, name = run.folder.parent, run.group or "alignloop"
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self.client = MlflowClient(tracking_uri=server or f"sqlite:///{runs / MLFLOW_STORE}")
        experiment = self.client.get_experiment_by_name(name)
        files = None if server else (runs / MLFLOW_FILES).as_uri()
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name, files)
        file = run.folder / "mlflow_id.txt"
        if not file.exists():
            created = self.client.create_run(experiment_id, run_name=run.name)
            write_atomically(file, created.info.run_id)
            params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in run.config.items()]
            self.client.log_batch(created.info.run_id, params=params[:MOST_PARAMS])
        self.run_id = file.read_text(encoding="utf-8").strip()
        self.client.update_run(self.run_id, status="RUNNING")  # a resumed step goes on with its run

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        now = int(time.time() * 1000)
        # A variant's name may hold a character that MLflow refuses.
        named = {re.sub(r"[^\w\-. :/]", "_", key): float(value) for key, value in values.items()}
        metrics = [self.make_metric(key, value, now, step) for key, value in named.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def finish(self) -> None:
        self.client.set_terminated(self.run_id)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(netrc.netrc().authenticators("api.wandb.ai"))
    except (OSError, netrc.NetrcParseError):
        return False


def _kept_id(path: Path) -> str:
    """A random id, unique among all runs; kept in a file, so that it stays the same over resumes."""
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8").strip()
