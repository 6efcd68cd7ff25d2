"""A stage is a program: one config in, one folder out, its record last. This module runs the `main` of every stage.

It checks the keys, locks the folder, ends the process when its runner or launcher has died, logs to console and file,
reports how the stage ended in `outcome.json` (`accelerate launch` turns every exit code into 1), and writes the record.
"""

import contextlib
import gc
import importlib.metadata
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_schemas import key_rules, stage_command_line, stage_keys
from data_schemas.artifact import RECORD, Artifact, Choice, files_below
from data_schemas.errors import ConfigError, UserError
from data_schemas.files import check_name, write_atomically
from data_schemas.locks import lock_folder
from data_schemas.stage_keys import Keys, Values
from data_schemas.text import printable
from engine.runtime import (
    arguments,
    launch_report,
    notices,
    out_of_memory,
    preemption,
    process,
    progress,
    timing,
    training_precision,
    world,
)
from engine.runtime.folder import (
    claim_folder,
    clear_leftovers,
    identity_keys,
    inputs_of,
    rank_done_file,
    wait_for_other_ranks,
)
from engine.runtime.keys import fill
from engine.runtime.outcome import failed, hint_for, start_logging
from engine.runtime.trackers import TrackedRun
from engine.runtime.tracking import Tracker
from engine.runtime.usage import used

log = logging.getLogger("alignloop")


@dataclass
class Stage:
    """One run of a stage."""

    name: str
    folder: Path
    values: Keys  # every key that was given, typed
    tracker: Tracker
    is_main: bool  # the first process, which writes what is written once


@dataclass
class StageResult:
    """What `main` returns: the parts of the record that only the stage knows (see data_schemas/artifact.py)."""

    outputs: dict[str, str]  # name -> file or folder, relative to the stage's folder
    metrics: dict[str, float | int | str | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # metric that is None -> why
    choices: list[Choice] = field(default_factory=list)
    contract: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # what a user should know of the step without reading its log
    notes: list[str] = field(default_factory=list)  # harmless ones on the files that were read
    engine: str = ""  # that wrapped the model in training


def run_stage(
    name: str,
    classes: Sequence[type],
    main: Callable[..., StageResult],
    *,
    defaults: Values | None = None,
    words: Sequence[str] | None = None,
) -> None:
    """Runs a stage from its command line and ends the process.

    `main` takes the Stage and an instance of each of `classes`. The exit code is 0 for success, 2 for a user's mistake,
    3 for a stage that waits for people, 130 for Ctrl-C, 143 for SIGTERM, and 1 for anything else.
    """
    words = list(sys.argv[1:] if words is None else words)
    if {"-h", "--help", "--help-all"} & set(words):
        print(stage_command_line.help_text(name, everything="--help-all" in words))
        sys.exit(0)
    gc.freeze()  # half a million objects of modules, which would cost each collection a fifth of a second
    try:
        for path in (Path.cwd(), *words):
            check_name(path)
        values = stage_command_line.parse_command_line(name, words)
        stage_keys.check_required(name, values, where=name)
        key_rules.check_values(name, values, where=name)
        if not values.get("output_dir"):
            raise ConfigError("output_dir is missing: the folder this stage writes")
        folder = Path(values["output_dir"]).absolute()
        code = _run(name, classes, main, values | {"output_dir": str(folder)}, defaults or {})
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = 2
    except OSError as error:  # an output_dir that is a file, or can't be written
        hint = hint_for(error)
        print(f"error: {printable(str(error))}" + (f"; {hint}" if hint else ""), file=sys.stderr)
        code = 1
    except preemption.Preempted:  # nothing was started, or everything is written
        code = preemption.EXIT_CODE
    with contextlib.suppress(OSError):  # they may be redirected to a file on a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    if code == 0:  # where one rank failed, the others may wait in a collective forever
        process.leave_process_group()
    sys.exit(code)


def _run(
    name: str,
    classes: Sequence[type],
    main: Callable[..., StageResult],
    values: Keys,
    defaults: Values,
) -> int:
    rank, is_main = world.rank(), world.is_first()
    folder = Path(values["output_dir"])
    given, values = values, training_precision.resolve(name, values)
    process.end_with_the_runner()
    process.use_all_cores()
    process.keep_memory()
    process.trust_code(bool(values.get("trust_remote_code")))
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder) if is_main else contextlib.nullcontext()
    with lock, preemption.listen_for_signals():
        claim_folder(name, folder, values)
        if is_main:
            clear_leftovers(folder)
            (folder / "outcome.json").unlink(missing_ok=True)  # of an earlier attempt
        start_logging(folder, str(values.get("log_level", "info")), is_main=is_main)
        timing.start(folder)
        notices.start(folder if is_main else None)
        training_precision.report(name, given, values)
        rank_done_file(folder, rank).unlink(missing_ok=True)
        try:
            with progress.published(folder, is_main=is_main):
                result = _call_main(name, folder, classes, main, values, defaults, is_main=is_main)
                if is_main:
                    wait_for_other_ranks(folder)
                    _finish(name, folder, values, result)
                else:
                    rank_done_file(folder, rank).parent.mkdir(exist_ok=True)
                    rank_done_file(folder, rank).touch()
        except (Exception, KeyboardInterrupt, preemption.Preempted) as error:
            if (folder / RECORD).exists():  # everything is written
                raise
            return failed(folder, error, is_main=is_main)
    return 0


def _call_main(
    name: str,
    folder: Path,
    classes: Sequence[type],
    main: Callable[..., StageResult],
    values: Keys,
    defaults: Values,
    *,
    is_main: bool,
) -> StageResult:
    """Resolves the batch sizes, fills the dataclasses, starts tracking and calls `main`."""
    keys, filled = stage_keys.stages()[name].keys, dict(values)
    tracker = Tracker(folder, active=is_main)
    try:
        if "global_batch_size" in keys:
            fewer = out_of_memory.remembered(folder / "checkpoints")
            rows, at_most = keys["global_batch_size"].default, fewer.get(out_of_memory.TRAINING)
            filled = arguments.resolve_batch(values, default_global=rows, at_most=at_most)
            if out_of_memory.EVALUATION in fewer:
                given = values.get(out_of_memory.EVALUATION, keys[out_of_memory.EVALUATION].default)
                filled[out_of_memory.EVALUATION] = min(given, fewer[out_of_memory.EVALUATION])
            for key in fewer:
                log.info("%s=%d, since more rows ran out of memory (checkpoints/memory.json)", key, filled[key])
            filled["output_dir"] = str(folder / "checkpoints")
            filled["disable_tqdm"] = values.get("disable_tqdm", not sys.stderr.isatty())
        instances = fill(classes, filled, defaults)
        if stage_keys.stages()[name].traits.imports_torch:
            launch_report.report(filled)
        if values.get("trust_remote_code"):
            log.warning("trust_remote_code is set: code from the model's files may run in this process")
        services = values.get("report_to", keys["report_to"].default) or []
        tracker.start(
            [services] if isinstance(services, str) else services,
            TrackedRun(
                folder,
                values.get("step") or name,
                group=values.get("run_group", ""),
                config=identity_keys(name, values),
            ),
        )
        result = main(Stage(name, folder, values, tracker, is_main), *instances)
        tracker.log_record(result.metrics)
        return result
    finally:
        if seconds := preemption.longest_wait():
            log.info("SIGTERM would have been answered within %.1f s", seconds)
        tracker.finish()


@progress.activity("writing the record")
def _finish(name: str, folder: Path, values: Values, result: StageResult) -> None:
    """Writes the outcome and the record, and deletes the checkpoints unless they are to be kept."""
    seconds, versions = timing.by_part(), {}
    for library in ("torch", "transformers", "trl", "accelerate", "deepspeed", "peft"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    outcome = {
        "state": "done",
        "cause": "",
        "hint": "",
        "kind": "",
        "seconds": seconds,
        "used": used(on_cpu=training_precision.is_on_cpu(values)),
    }
    write_atomically(folder / "outcome.json", json.dumps(outcome))
    Artifact(
        stage=name,
        step=str(values.get("step", "")),
        recipe_version=stage_keys.stages()[name].recipe_version,
        fingerprint=str(values.get("fingerprint", "")),
        keys=identity_keys(name, values),
        inputs=inputs_of(name, values),
        outputs=result.outputs,
        files=files_below(folder, result.outputs),
        metrics=result.metrics,
        reasons=result.reasons,
        choices=result.choices,
        contract=result.contract,
        warnings=list(dict.fromkeys([*notices.kept(), *result.warnings])),
        notes=result.notes,
        versions=versions,
        engine=result.engine,
        seconds=round(sum(seconds.values()), 3),
    ).write(folder)
    if not values.get("keep_checkpoints"):  # only now: a kill before the record needs them to resume
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    log.info("complete: %s", folder)


def format_counts(counts: Mapping[str, int] | Mapping[str | None, int]) -> str:
    """Counts by reason, for a message: `strength 9, too_similar 1`."""
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())
