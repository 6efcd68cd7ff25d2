"""A finished round in wandb: the table of rounds, sample answers and the page, read back from what it wrote offline."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import wandb

from commands import track_round
from data_schemas.artifact import Artifact
from data_schemas.files import write_atomically
from pipeline.launch import round_tracking
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.state.run import Run, StepState
from tests.pipeline.fake_stages import build_inputs
from tests.toy_rows import write_jsonl
from tests.wandb_files import group_of, logged_offline, steps_of

ROUNDS = [
    {"round": 0, "policy": "round-0.sft", "judge_mean": 0.25, "proxy_mean": None, "gate": "accept", "reasons": {}},
    {"round": 1, "policy": "round-1.dpo", "judge_mean": 0.5, "proxy_mean": 2, "gate": "accept", "reasons": {}},
]


def request(folder: Path, *, number: int = 1, **changes: Any) -> Path:
    rows = [{name: value for name, value in row.items() if name != "reasons"} for row in ROUNDS[: number + 1]]
    content = {"folder": str(folder), "name": "demo", "round": number, "rounds": rows, "samples": [], "page": None}
    write_atomically(folder / "request.json", json.dumps(content | changes))
    return folder / "request.json"


def call(path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "argv", ["track_round.py", str(path)])
    track_round.main()


def media(folder: Path, entry: dict[str, Any]) -> str:
    """The file of a table or page in a run's folder."""
    (file,) = (folder / "wandb").glob(f"offline-run-*/files/{entry['path']}")
    return file.read_text(encoding="utf-8")


def wait_for_the_next_second() -> None:
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.05)


def test_wandb_gets_the_table_of_rounds_the_samples_and_the_page(tmp_path, monkeypatch):
    page, sample = tmp_path / "report.html", {"policy": "round-1.dpo", "prompt": "Hi", "answer": "Yo", "ended": True}
    page.write_text("<p>the page</p>")
    call(request(tmp_path, number=0), monkeypatch)
    wait_for_the_next_second()  # wandb names a start's folder by it
    call(request(tmp_path, samples=[sample], page=str(page)), monkeypatch)
    first, second = logged_offline(tmp_path)
    assert group_of(tmp_path) == {"demo"} and steps_of(tmp_path) == [0, 1]  # wandb drops a step that it has
    assert (first["round"], first["judge_mean"], set(first)) == (0, 0.25, {"round", "judge_mean", "rounds"})
    assert (second["round"], second["judge_mean"], second["proxy_mean"]) == (1, 0.5, 2)
    rounds = json.loads(media(tmp_path, second["rounds"]))
    assert rounds["columns"] == ["round", "policy", "judge_mean", "proxy_mean", "gate"]
    assert rounds["data"] == [[0, "round-0.sft", 0.25, None, "accept"], [1, "round-1.dpo", 0.5, 2, "accept"]]
    assert json.loads(media(tmp_path, second["samples"]))["data"] == [["round-1.dpo", "Hi", "Yo", True]]
    assert media(tmp_path, second["report"]) == "<p>the page</p>"


def test_whatever_wandb_raises_is_one_line(tmp_path, monkeypatch, capsys):
    def fail(**_: object) -> None:
        raise RuntimeError("no\x1b[2J\nnetwork")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(SystemExit) as ended:
        call(request(tmp_path), monkeypatch)
    assert ended.value.code == 1 and capsys.readouterr().err == "no\\x1b[2J network\n"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """A run of toy steps, whose last evaluation has finished; it reports to wandb."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(build_inputs(tmp_path / "work"), ["rounds=1", "defaults.report_to=[tensorboard, wandb]"])
    run = Run.of(recipe, make_plan(recipe))
    run.states = {step.name: StepState(run.folder(step.name), "ran") for step in run.steps}
    folder = run.states[run.steps[-1].name].folder
    assert folder is not None
    folder.mkdir(parents=True)
    write_jsonl(
        folder / "answers.jsonl",
        [{"prompt": [{"role": "user", "content": "Hi"}], "candidates": [{"text": "Yo", "ended": True}]}],
    )
    run.states[run.steps[-1].name].artifact = Artifact(
        stage="evaluate_policy",
        step=run.steps[-1].name,
        recipe_version=1,
        keys={},
        inputs={},
        outputs={"answers": "answers.jsonl"},
        files={},
        metrics={},
    )
    return run


def test_the_request_has_no_samples_where_the_recipe_leaves_them_out(run):
    summary: dict[str, Any] = {"rounds": ROUNDS}
    for recipe, num_samples in ((None, 1), ({"shows_samples": True}, 1), ({"shows_samples": False}, 0)):
        write_atomically(run.recipe.folder / "summary.json", json.dumps(summary | {"recipe": recipe}))
        made = round_tracking.make_request(run, run.steps[-1])
        assert len(made["samples"]) == num_samples and made["page"] is None
        assert made["rounds"][1] == {name: value for name, value in ROUNDS[1].items() if name != "reasons"}
    (run.recipe.folder / "report.html").write_text("")
    assert round_tracking.make_request(run, run.steps[-1])["page"] == str(run.recipe.folder / "report.html")


def test_only_an_evaluation_that_ran_now_is_sent_and_a_failure_is_one_warning(run, monkeypatch, capsys):
    calls: list[Any] = []

    def fail(command, env):
        calls.append(command)
        return "no network"

    monkeypatch.setattr(round_tracking, "_call", fail)
    evaluation = run.steps[-1]
    round_tracking.track_round(run, evaluation)
    assert len(calls) == 1
    assert capsys.readouterr().err == (
        "warning: wandb did not take the numbers of round 1, which are in summary.json: no network\n"
    )
    run.states[evaluation.name].state = "reused"
    round_tracking.track_round(run, evaluation)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("pass", ""),
        ("import sys; print('a'); sys.exit('first\\nlast')", "last"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_the_last_line_of_a_failed_command_is_its_problem(code, problem):
    assert round_tracking._call([sys.executable, "-S", "-c", code], {}) == problem
