"""alignloop from Python, with toy stages: plan, run, resume, errors as exceptions, signals, and the tables of a run."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pandas
import pytest

import alignloop
from alignloop.table import Table
from data_schemas.locks import lock_folder
from pipeline.launch import command_line, processes, warm
from pipeline.launch.processes import Interrupted
from pipeline.report import running
from tests.pipeline.fake_stages import build_house, build_inputs

ONE_ROUND = {"rounds": 1}
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """The working directory, with a recipe `toy.yaml` whose stages are toys."""
    house = build_house(tmp_path / "house").parent
    monkeypatch.setattr(command_line, "ROOT", house)
    monkeypatch.setattr(warm, "preloaded_modules", list)
    monkeypatch.setattr(processes, "LEFTOVER_SECONDS", 0.5)
    folder = build_inputs(tmp_path / "work").parent
    monkeypatch.chdir(folder)
    return folder


def run(**settings: Any) -> Path:
    return alignloop.run(alignloop.load_recipe("toy.yaml", ONE_ROUND | settings), preflight=False)


def test_a_recipe_is_planned_run_and_reused(work, capsys):
    recipe = alignloop.load_recipe(Path("toy.yaml"), {"rounds": 1, "dpo.beta": 1e-5, "human_share": 1e-2})
    assert "toy: 10 steps" in repr(recipe)
    table = alignloop.plan(recipe)
    assert [row["action"] for row in table] == ["run"] * 10
    dpo = next(row for row in table if row["step"] == "round-1.dpo")
    assert (dpo["stage"], dpo["round"], dpo["why"]) == ("dpo", 1, "not run yet")

    handlers = [signal.getsignal(number) for number in HANDLED]
    folder = alignloop.run(recipe, preflight=False)
    assert [signal.getsignal(number) for number in HANDLED] == handlers
    assert folder == recipe.folder == work / "runs" / "toy"
    assert "[10/10] round-1.evaluate_policy" in capsys.readouterr().out
    assert {row["action"] for row in alignloop.plan(recipe)} == {"reuse"}
    changed = alignloop.load_recipe("toy.yaml", {"rounds": 1, "dpo.beta": 0.2, "human_share": 0.01})
    why = {row["step"]: row["why"] for row in alignloop.plan(changed) if row["action"] == "run"}
    assert why == {"round-1.dpo": "dpo.beta 1e-05 -> 0.2", "round-1.evaluate_policy": "input round-1.dpo changed"}

    assert [row["judge_mean"] for row in alignloop.rounds(folder)] == [0.0, 1.0]
    assert {(row["step"], row["state"]) for row in alignloop.steps(folder)} >= {("round-1.dpo", "ran")}
    assert alignloop.summary(folder)["state"] == "done"
    best = alignloop.best_policy(folder)
    assert best.parent.name.startswith("round-1.dpo-") and best.name == "model"
    log = best.parent / "metrics.jsonl"
    log.write_text('{"step": 2, "loss": 1.0}\n{"step": 1, "loss": 2.0}\n{"step": 2, "eval_loss": 3.0}\n{"step": 3, "lo')
    assert alignloop.metrics(str(folder), "round-1.dpo") == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0, "eval_loss": 3.0},
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dpo.betta": 1}, "--set dpo.betta=1: dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?"),
        ({"dpo.beta": 1j}, "dpo.beta=1j is a complex; expected text, a number, a boolean, None, a path"),
    ],
)
def test_a_wrong_setting_is_a_config_error(work, settings, message):
    with pytest.raises(alignloop.ConfigError) as error:
        alignloop.load_recipe("toy.yaml", settings)
    assert message in str(error.value)


def test_paths_and_nested_settings_are_taken(work):
    settings = {"base_model": work / "base", "by_round": {1: {"dpo": {"beta": 0.5}}}, "rl": {"seed": 1}, "name": "no"}
    with pytest.warns(UserWarning, match="toy.yaml: the section rl is not used"):
        recipe = alignloop.load_recipe("toy.yaml", ONE_ROUND | settings)
    (dpo,) = [step for step in recipe.steps_planned if step.stage == "dpo"]
    assert (recipe.name, dpo.keys["beta"]) == ("no", 0.5)


def test_a_failed_stage_is_an_exception_and_what_is_finished_is_kept(work, monkeypatch):
    monkeypatch.setenv("TOY", '{"round-1.sft": "fail"}')
    with pytest.raises(alignloop.StageFailed) as failed:
        run()
    assert failed.value.step.name == "round-1.sft" and "round-1.sft failed: " in str(failed.value)
    monkeypatch.setenv("TOY", "{}")
    states = {row["step"]: row["state"] for row in alignloop.steps(run())}
    assert (states["round-1.rejection_sampling"], states["round-1.sft"]) == ("reused", "ran")


def test_a_run_that_another_process_holds_is_a_busy_error(work):
    with lock_folder(work / "runs" / "toy"), pytest.raises(alignloop.BusyError, match="in use by another process"):
        run()


def test_a_run_in_another_thread_works(work):
    folders: list[Path] = []
    thread = threading.Thread(target=lambda: folders.append(run()))
    thread.start()
    thread.join()
    assert folders == [work / "runs" / "toy"] and alignloop.summary(folders[0])["state"] == "done"


def test_an_interrupt_stops_the_step_and_restores_the_handlers(work, monkeypatch, capsys):
    monkeypatch.setenv("TOY", '{"round-1.dpo": "hang"}')
    before = [signal.getsignal(number) for number in HANDLED]
    hanging = work / "runs" / "toy" / "hanging.txt"

    def interrupt() -> None:
        while not (hanging.exists() and len(hanging.read_text().split()) == 2):
            ended.wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    ended = threading.Event()
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        run()
    ended.set()
    assert [signal.getsignal(number) for number in HANDLED] == before
    assert "interrupted: 8 of 10 steps are finished and kept, round-1.dpo has no checkpoint" in capsys.readouterr().err
    states = {row["step"]: row["state"] for row in alignloop.steps(work / "runs" / "toy")}
    assert states["round-1.dpo"] == "interrupted"


def test_sigterm_is_passed_on_to_the_handler_that_was_there(work, monkeypatch):
    def stop(*args: object, **options: object) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(running, "run_steps", stop)
    monkeypatch.setattr(running, "what_is_kept", lambda run: "interrupted")
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
            run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("round-1.dpoo", "has no step 'round-1.dpoo'; did you mean 'round-1.dpo'?; its steps: prepare_data, "),
        ("round-1.dpo", "round-1.dpo of runs/toy has logged no numbers yet; expected a step that has begun"),
    ],
)
def test_metrics_that_do_not_exist_are_a_config_error(work, step, message):
    (metrics,) = run().glob("round-1.dpo-*/metrics.jsonl")
    metrics.write_text("")  # of a step that has just begun
    with pytest.raises(alignloop.ConfigError) as error:
        alignloop.metrics("runs/toy", step)
    assert message in str(error.value)


def test_a_folder_that_is_no_run_is_a_config_error(work):
    for function in (alignloop.rounds, alignloop.steps, alignloop.best_policy, alignloop.load_best_policy):
        with pytest.raises(alignloop.ConfigError, match=r"has no summary.json; expected the folder of a run"):
            function(work)


def test_a_table_is_shown_without_markup_and_becomes_a_data_frame(monkeypatch):
    table = Table([{"step": 1, "loss": 0.123456}, {"step": 2, "text": "<b>\x1b"}])
    assert table._repr_html_() == (
        "<table><thead><tr><th>step</th><th>loss</th><th>text</th></tr></thead><tbody>"
        "<tr><td>1</td><td>0.1235</td><td></td></tr><tr><td>2</td><td></td><td>&lt;b&gt;\\x1b</td></tr></tbody></table>"
    )
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame.columns) == ["step", "loss", "text"]
    assert frame["loss"].isna().tolist() == [False, True]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(alignloop.ConfigError, match="pandas is not installed"):
        table.to_pandas()


def test_every_name_exists():
    assert sorted(alignloop.__all__) == dir(alignloop)
    assert all(getattr(alignloop, name) for name in alignloop.__all__)
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        alignloop.rnu  # noqa: B018
