"""What the terminal shows: verbose output, status, and the plan."""

import html
import io
import json
import sys

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_schemas.text import printable
from pipeline import cli
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.report import rounds, terminal
from pipeline.report.terminal import make_console
from pipeline.state import summary
from pipeline.state.run import Decision, Run
from tests.pipeline.fake_stages import build_inputs


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


COSTS_BY_WIDTH = {
    80: [],
    100: [],
    120: [],
    127: ["GiB"],
    140: ["GiB", "est. GiB"],
    150: ["est. s", "GiB", "est. GiB"],
}


@pytest.mark.parametrize(("width", "costs"), COSTS_BY_WIDTH.items())
def test_the_table_of_steps_shows_every_number_and_leaves_out_costs_first(world, width, costs):
    world.run()
    numbers = {
        "sft": {"eval_loss_at_step_0": 5.1234, "eval_loss": 2.3456},
        "dpo": {"eval_rewards/accuracies": 0.875, "eval_rewards/margins": 0.0625},
    }
    cost = {"estimated_seconds": [117.0, 141.0], "memory": 1.5 * 2**30, "estimated_memory": 1.25 * 2**30}
    step = world.summary()["steps"][0] | {"state": "ran", "seconds": 123.4, "cost": cost}
    folders = {"sft": "round-0.sft-15874d45", "dpo": "round-1.rejection_sampling-0123abcd"}
    steps = [step | {"stage": stage, "metrics": numbers[stage], "folder": folders[stage]} for stage in numbers]
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(terminal.steps_table(world.summary() | {"steps": steps}, width=width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = "".join(lines)
    assert [head for head in terminal.COSTS if f" {head} |" in lines[1]] == costs
    for name in numbers["sft"] | numbers["dpo"]:
        value = (numbers["sft"] | numbers["dpo"])[name]
        assert any(f"{name} {value:.3f}" in line for line in lines), name
    assert "…" not in text and "123.4" in text and "round-0.sft-15874d45" in text
    joined = "".join(line.split("|")[1].strip() for line in lines if "|" in line)
    assert "round-1.rejection_sampling-0123abcd" in joined


def test_the_table_by_round_has_rows_for_each_tag_of_the_prompts(world):
    world.run()
    summary = world.summary()
    numbers = {"judge_mean": 0.25, "score_gain_vs_first": -0.125, "score_gain_vs_first_low": -0.2}
    summary["rounds"][1]["by_tag"] = {"math\x1b": numbers | {"score_gain_vs_first_high": 0.1}}
    shown = {name: cells for name, cells in rounds.rows(summary) if "math" in name}
    assert shown == {
        "judge's mean: math\\x1b": ["-", "0.250"],
        "gain vs first: math\\x1b": ["-", "-0.125 [-0.20, 0.10]"],
        "wins vs first: math\\x1b": ["-", "-"],
    }
    summary["rounds"][1]["by_tag"] = ["damaged"]
    assert not [name for name, _ in rounds.rows(summary) if "math" in name]


@pytest.mark.parametrize(("accuracy", "is_said"), [(0.0, True), (0.5, True), (0.51, False), (None, False)])
def test_a_judge_no_better_than_chance_is_said_below_the_table(world, accuracy, is_said):
    world.run()
    summary = world.summary()
    judge = {**summary["steps"][3], "name": "judge", "stage": "reward_model", "metrics": {"eval_accuracy": accuracy}}
    (world.run_folder / "summary.json").write_text(json.dumps(summary | {"steps": [*summary["steps"], judge]}))
    code, out, _ = world.call("status", "runs/toy")
    text = " ".join(out.split())
    assert code == 0
    assert ("of its held-out pairs rightly, which is no better than chance" in text) == is_said
    assert (f"the judge orders {accuracy or 0:.0%} of" in text) == is_said


@pytest.mark.parametrize(("kl", "is_said"), [(12.13, True), (10.0, False), (None, False)])
def test_a_policy_far_from_the_first_is_said_below_the_table(world, kl, is_said):
    world.run()
    summary = world.summary()
    first, second = summary["rounds"]
    changed = summary | {"rounds": [first, second | {"kl_to_first": kl}]}
    (world.run_folder / "summary.json").write_text(json.dumps(changed))
    code, out, _ = world.call("status", "runs/toy")
    said = f"{second['policy']} is 12.1 nats an answer from the first policy: a judge or a reward model that was"
    assert code == 0 and (said in " ".join(out.split())) == is_said


@pytest.mark.parametrize(
    ("stage", "loss", "high", "is_said"),
    [("rl", -2.0, 0.49, True), ("rl", -2.0, 0.5, False), ("rl", 1.0, 0.49, False), ("dpo", -2.0, 0.49, False)],
)
def test_a_reward_that_rose_while_the_judge_prefers_the_policy_before_is_named(world, stage, loss, high, is_said):
    """Below the table and on the page. A loss is minus a reward, and 0.5 is a win rate within its interval."""
    world.run()
    summary = world.summary()
    metrics = {"eval_loss_at_step_0": -0.5, "eval_loss": loss}
    policy = {**summary["steps"][3], "name": "round-1.rl", "stage": stage, "metrics": metrics, "folder": None}
    policy["round"] = 1
    first, second = summary["rounds"]
    fell = second | {
        "policy": "round-1.average",  # of the one that rl has trained, and the best before
        "judge_mean": -0.25,
        "win_rate_vs_previous_high": high,
    }
    changed = summary | {"steps": [*summary["steps"], policy], "rounds": [first | {"judge_mean": 0.25}, fell]}
    (world.run_folder / "summary.json").write_text(json.dumps(changed))
    code, out, _ = world.call("status", "runs/toy")
    sentence = (
        "round-1.rl exploits its reward: that rose on held-out prompts from 0.500 to 2.000, and the judge's mean fell "
        "from 0.250 to -0.250; lower rl.kl_budget, set rl.reward_shaping, or change the reward"
    )
    assert code == 0 and (sentence in " ".join(out.split())) == is_said
    assert world.call("report", "runs/toy")[0] == 0
    page = html.unescape((world.run_folder / "report.html").read_text())
    assert (sentence[:1].upper() + sentence[1:] in page) == is_said


def test_the_reasons_of_a_plan_are_wrapped_and_its_counts_add_up(tmp_path):
    recipe = load_recipe(build_inputs(tmp_path / "work"), ["rounds=0"])
    steps = make_plan(recipe)
    run = Run.of(recipe, steps)
    reason = ", ".join(f"sft.key_{number} 0.1 -> 0.2" for number in range(9))
    actions = dict(zip([step.name for step in steps], ["reuse", "to be hashed", "run", "skip"], strict=True))
    decisions = {name: Decision(action, reason, None) for name, action in actions.items()}
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(terminal.plan_tree(run, decisions))
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("toy: 4 steps, 1 reuse, 0 resume, 1 run, 1 skip, 1 to be hashed  ")
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(line.strip(" │├└─") for line in lines).split())
    assert text.count(reason) == 4


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
    assert out.startswith(f"{printable(name)}: done")


def test_the_table_by_round_shows_what_each_task_costs():
    columns = dict.fromkeys(column for column, _, _ in summary.columns())
    first = {"task_scores": "gsm8k", "gsm8k": 0.4, "gsm8k_low": 0.31, "gsm8k_high": 0.5}
    second = first | {"gsm8k": 0.35, "gsm8k_vs_first": -0.05, "gsm8k_vs_first_low": -0.12, "gsm8k_vs_first_high": 0.02}
    rounds_of = [
        {"round": number, "policy": "p", "reasons": {}, "tasks": tasks} | columns
        for number, tasks in enumerate((first, second))
    ]
    shown = dict(rounds.rows({"rounds": rounds_of}))  # pyright: ignore[reportArgumentType]
    assert shown["gsm8k"] == ["0.400 [0.31, 0.50]", "0.350 [0.31, 0.50]"]
    assert shown["gsm8k vs first"] == ["-", "-0.050 [-0.12, 0.02]"]
    assert "RL reward" not in shown


def test_the_table_by_round_shows_the_reward_and_the_kl_of_rl():
    columns = {"round": 1, "policy": "p", "reasons": {}} | dict.fromkeys(column for column, _, _ in summary.columns())
    rounds_of = [columns, columns | {"rl_reward": 18.4, "rl_kl": 1.25}]
    shown = dict(rounds.rows({"rounds": rounds_of}))  # pyright: ignore[reportArgumentType]
    assert (shown["RL reward"], shown["RL's KL"]) == (["-", "18.400"], ["-", "1.250"])
