"""The lines of running steps, on a terminal and elsewhere, and the warnings of those that have ended."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from data_schemas.artifact import Artifact
from data_schemas.progress import PROGRESS, TIMING
from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from pipeline.report import live
from pipeline.state.run import StepState
from tests.pipeline.toy_house import ONE_ROUND
from tests.progress_files import EVALUATING, TRAINING, write_progress


def step_of(name):
    return Step(name, "sft", 0, "sft", {}, {}, Launch())


def console_of(width, *, is_terminal):
    return Console(force_terminal=is_terminal, width=width, file=io.StringIO(), color_system=None)


def printed(console):
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_a_running_step_has_its_folder_and_progress_within_the_width(tmp_path, width, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "demo" / "round-1.rejection_sampling-0123abcd"
    folder.mkdir(parents=True)
    write_progress(folder, TRAINING, EVALUATING)
    console = console_of(width, is_terminal=True)
    display = live.RunDisplay(console, 18, live=True)
    display(step_of("round-1.rejection_sampling"), StepState(folder, "running", seconds=34.2))
    console.print(display._running_group())
    lines = printed(console)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "runs/demo/round-1.rejection_sampling-0123abcd" in text
    assert "training 40/200 steps, loss 0.5123" in text and "evaluating 64/300 rows" in text
    assert len(lines) == (4 if width == 80 else 2)


def test_without_a_terminal_a_running_step_is_never_silent_for_long(tmp_path):
    now, console = [0.0], console_of(200, is_terminal=False)
    display = live.RunDisplay(console, 3, live=False, clock=lambda: now[0])
    state = StepState(tmp_path, "running")
    for tenth in range(600):
        now[0] = state.seconds = tenth / 10
        if tenth == 200:
            write_progress(tmp_path, TRAINING)
        if tenth == 400:
            (tmp_path / PROGRESS).unlink()
        display(step_of("sft"), state)
    lines = printed(console)
    assert [line.split()[3:5] for line in lines] == [["0.0", "s"], ["15.0", "s"], ["30.0", "s"], ["45.0", "s"]]
    assert lines[0].endswith(str(tmp_path)) and lines[1].endswith("starting")
    assert lines[2].endswith("training 40/200 steps, loss 0.5123, 1.6 steps/s, 2 min left")
    assert lines[3].endswith("working")  # the file is gone, and the process not yet


def test_the_reason_of_a_step_is_in_its_first_line_only(tmp_path):
    now, console = [0.0], console_of(100, is_terminal=False)
    display, state = (
        live.RunDisplay(console, 3, live=False, clock=lambda: now[0]),
        StepState(tmp_path, "running", why="max_steps 200 -> 40"),
    )
    for second in range(32):
        now[0] = float(second)
        display(step_of("sft"), state)
    lines = printed(console)
    assert len(lines) == 3 and [("max_steps" in line) for line in lines] == [True, False, False]
    assert all(line.endswith("starting") for line in lines[1:])


def test_the_warnings_of_a_step_follow_its_line_once(tmp_path):
    console = console_of(60, is_terminal=True)
    display = live.RunDisplay(console, 3, live=False)
    warning = "rows are [bold]padded[/bold]: " + " ".join(["slower"] * 12)
    artifact = Artifact(
        stage="sft",
        step="sft",
        recipe_version=1,
        keys={},
        inputs={},
        outputs={},
        files={},
        metrics={},
        warnings=[warning],
        notes=["faq.csv: ignored columns: team"],
    )
    display(step_of("sft"), StepState(tmp_path, "ran", artifact=artifact))
    lines = printed(console)
    assert lines.pop().rstrip() == f"{' ' * 8}note: faq.csv: ignored columns: team"
    assert " ".join(" ".join(lines[1:]).split()) == f"warning: {warning}"
    assert all(line.startswith(" " * 8) and len(line) <= 60 for line in lines[1:])
    display(step_of("sft"), StepState(tmp_path, "reused", artifact=artifact))
    assert len(printed(console)) == len(lines) + 2


def test_live_lines_show_every_step_that_runs(tmp_path):
    display = live.RunDisplay(console_of(100, is_terminal=True), 6, live=True)
    states = [StepState(None, "running"), StepState(None, "running")]
    for number in (0, 1, 0):
        display(step_of(f"round-0.sft.{number}"), states[number])
    assert list(display.running) == ["round-0.sft.0", "round-0.sft.1"]
    states[0].state = "ran"
    display(step_of("round-0.sft.0"), states[0])
    assert [str(running.head).split()[:2] for running in display.running.values()] == [["[2/6]", "round-0.sft.1"]]


def on_terminal(world, *words, term, seconds=60, until=None, **environment):
    """What the command prints to a terminal of 80 columns, until it ends or has printed `until`."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TOY": "{}", "SCORES": "{}", "GRACE": "0.5", "TERM": term, "COLUMNS": "80"} | environment
    process = subprocess.Popen(
        [sys.executable, str(world.command), *words], cwd=world.work, env=env, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    text, deadline = "", time.monotonic() + seconds
    while time.monotonic() < deadline and not (until and until in text):
        if select.select([ours], [], [], 0.2)[0]:
            try:
                text += os.read(ours, 65536).decode()
            except OSError:  # the command has ended
                break
    process.terminate()
    process.wait()
    os.close(ours)
    return text


def test_a_dumb_terminal_gets_plain_lines_and_no_escape_sequences(world):
    text = on_terminal(world, "run", "toy.yaml", "--set", "rounds=0", term="dumb")
    assert "\x1b" not in text
    assert re.search(r"\[1/4\] prepare_data +running", text) and re.search(
        r"\[4/4\] round-0.evaluate_policy +ran", text
    )


def test_status_follows_a_running_step(world):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY=json.dumps({"round-0.sft": "hang"}))
    world.hanging()
    folder = world.folder("round-0.sft")
    assert (world.run_folder / "steps" / "round-0.sft").resolve() == folder
    write_progress(folder, TRAINING, started=time.time() - 5)
    code, out, _ = world.call("status", "runs/toy")
    assert code == 0 and "toy: running (2 of 10 steps are finished)" in out
    assert re.search(
        rf"\[ 3/10\] round-0.sft +running +\d+\.\d s  runs/toy/{folder.name}\n +training 40/200 steps, l", out
    )
    for term in ("xterm", "dumb"):
        text = on_terminal(world, "status", "--follow", "runs/toy", term=term, until="2 min left")
        assert "training 40/200 steps, loss 0.5123, 1.6 steps/s, 2 min left" in text
    process.terminate()
    process.communicate()
    code, out, _ = world.call("status", "runs/toy", "--follow")
    assert code == 0 and "toy: interrupted (2 of 10 steps are finished)" in out and "training" not in out


def test_a_step_whose_process_was_killed_is_stopped_with_its_seconds(world):
    process = world.start("run", "toy.yaml", *ONE_ROUND, TOY=json.dumps({"round-0.sft": "hang"}))
    left_over = world.hanging()
    folder = world.folder("round-0.sft")
    (folder / TIMING).write_text('{"train": 71.5, "load": 12}')
    code, out, _ = world.call("status", "runs/toy")
    assert code == 0 and re.search(rf"{folder.name} +\| running +\| +(8[3-9]|9\d)\.\d ", out), out
    process.kill()
    process.communicate()
    for pid in left_over:  # the toy's stages do not end with their runner
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code, out, _ = world.call("status", "runs/toy")
    assert code == 0 and "toy: stopped" in out and re.search(rf"{folder.name} +\| stopped +\| +83\.5 ", out), out
