"""What the terminal shows: verbose output, status, and live lines."""

import io

from rich.console import Console

from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from pipeline.report import terminal
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
