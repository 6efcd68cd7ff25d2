"""What the terminal shows: verbose output, status, and live lines."""

import io
import json
import sys

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_schemas.text import printable
from pipeline import cli
from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from pipeline.report import terminal
from pipeline.report.terminal import make_console
from pipeline.state.run import StepState


def test_verbose_passes_the_stages_output_on(world):
    out = world.run("-v")[1]
    assert "hello from round-1.dpo" in out
    assert "hello from round-1.dpo" not in world.run("--set", "dpo.beta=0.2")[1]


def test_status_shows_every_step_and_the_table_by_round(world):
    world.run()
    for target in ("runs/toy", "runs/toy/summary.json"):
        code, out, _ = world.call("status", target)
        assert code == 0
        assert f"| {world.folder('round-1.reward_model').name} " in out
        assert ["judge's", "mean", "|", "0.000", "|", "1.000"] in [
            line.strip("| ").split() for line in out.splitlines()
        ]


def test_live_lines_show_every_step_that_runs():
    console = Console(force_terminal=True, width=100, file=io.StringIO())
    progress = terminal.Progress(console, 6, live=True)
    one, two = (Step(f"round-0.sft.{n}", "sft", 0, "sft", {}, {}, Launch()) for n in (1, 2))
    states = [StepState(None, "running"), StepState(None, "running")]
    progress(one, states[0])
    progress(two, states[1])
    progress(one, states[0])
    assert [str(line).split()[1] for line in progress.running.values()] == ["round-0.sft.1", "round-0.sft.2"]
    states[0].state = "ran"
    progress(one, states[0])
    assert [str(line).split()[:2] for line in progress.running.values()] == [["[2/6]", "round-0.sft.2"]]


def test_a_console_escapes_what_controls_a_terminal_and_knows_no_markup(capsys):
    console = make_console()
    table = Table("[bold]step[/nothing]", "state")
    table.add_row("\x1b]0;title\x07", Text("[red]a\x1b[2J"))
    console.print("[/wrong]", table)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert "[/wrong]" in out and "[bold]step[/nothing]" in out and "[red]a\\x1" in out  # wider than its column: cropped
    assert "\\x1b]0;title" in out


@pytest.mark.parametrize("name", ["[bold]", "[/x]", "a\x1b[2Jb"])
def test_status_of_a_run_with_any_name_is_readable(name, tmp_path, capsys, monkeypatch):
    step = {"name": name, "stage": "sft", "round": 0, "folder": None, "fingerprint": None, "state": name}
    summary = {"name": name, "state": "done", "steps": [step | {"seconds": 1.0, "metrics": {"eval_loss": name}}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"rounds": [], "best_policy": None}))
    monkeypatch.setattr(sys, "argv", ["alignloop", "status", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr().out
    assert not end.value.code
    assert "\x1b" not in out
    assert out.startswith(f"{printable(name)}: done\n")
