"""SIGTERM and kills at bad moments."""

from pathlib import Path

import pytest

from data_schemas.rows import Message, Prompt
from engine.judging import scoring
from engine.runtime import preemption
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer
from stages import average_models
from tests.stage_runs import call_stage, run_here


def test_a_function_that_scores_is_not_called_again_after_sigterm(tmp_path, monkeypatch):
    (tmp_path / "slow_judge.py").write_text(
        "import os, signal\ncalls = []\n\ndef score(prompt, answer, ended):\n    calls.append(answer)\n"
        "    if len(calls) == 4:\n        os.kill(os.getpid(), signal.SIGTERM)\n    return float(len(answer))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_judge  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(scoring, "FUNCTION_BATCH", 3)
    stage = Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)
    prompt = Prompt(prompt=[Message(role="user", content="?")])
    texts = ("a", "bb", "ccc", "dddd", "eeeee", "f", "g")
    answers = [Answer(prompt, k, text, [], True) for k, text in enumerate(texts)]

    def score() -> list[float]:
        return scoring.FunctionScorer(stage, "slow_judge:score", 9)("scores", answers)

    with preemption.listen_for_signals(), pytest.raises(preemption.Preempted):
        score()
    assert slow_judge.calls == ["a", "bb", "ccc", "dddd"]
    assert score() == [1, 2, 3, 4, 5, 1, 1]
    assert slow_judge.calls[4:] == ["dddd", "eeeee", "f", "g"], "the finished batch is kept"


def test_an_average_that_was_killed_before_its_record_is_computed_again(tiny_model, rows, tmp_path, monkeypatch):
    keys = {
        "models": [tiny_model, tiny_model],
        "averaged_stage": "sft",
        "eval_data": [rows / "conversations_eval.jsonl"],
    }

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(average_models, "check_weights", killed)
        assert call_stage("average_models", tmp_path / "average", **keys) == 130
    record = run_here("average_models", tmp_path / "average", **keys)
    assert record.damage(tmp_path / "average") == []
