"""evaluate_policy: policies are ranked by one judge on the same answers."""

import json

import numpy as np
import pytest

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError, DataError
from data_schemas.reading import read_rows
from data_schemas.rows import Candidates
from engine.judging.comparison import read_earlier
from tests.stage_runs import run_here
from tests.toy_prompts import PROMPTS, candidates


def test_policies_are_ranked_by_the_same_judge_on_the_same_answers(tiny_model, tied_model, rows, tmp_path, monkeypatch):
    (tmp_path / "judge.py").write_text("def score(prompt, answer, ended):\n    return float(len(answer))\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    common = {
        "prompts": [rows / "prompts.jsonl"],
        "judge_function": "judge:score",
        "num_answers": 2,
        "max_new_tokens": 6,
    }
    folders = [tmp_path / name for name in ("first", "second", "third")]
    first = run_here("evaluate_policy", folders[0], model_name_or_path=tiny_model, policy_step="a", **common)
    later = {"first_policy": tiny_model, **common}
    second = run_here(
        "evaluate_policy", folders[1], model_name_or_path=tied_model, policy_step="b", previous=folders[:1], **later
    )
    third = run_here(
        "evaluate_policy", folders[2], model_name_or_path=tiny_model, policy_step="c", previous=folders[:2], **later
    )

    groups = read_rows(folders[0] / "answers.jsonl", Candidates)
    lengths = [[len(candidate.text) for candidate in group.candidates] for group in groups]
    assert first.metrics["gold_mean"] == first.metrics["judge_mean"] == pytest.approx(np.mean(lengths))
    assert first.metrics["judge"] == "judge:score" and first.metrics["kl_to_first"] == 0.0
    assert first.metrics["win_rate_vs_first"] is None and "win_rate_vs_first" in first.reasons
    # The same policy gives the same answers: all comparisons are ties, the KL is 0, and the earlier policy stays first.
    again, once = ((folders[place] / "answers.jsonl").read_text() for place in (2, 0))
    assert again == once.replace('"policy": "a"', '"policy": "c"') != once  # rows name the policy's step
    assert third.metrics["win_rate_vs_first"] == 0.5 and third.metrics["kl_to_first"] == pytest.approx(0, abs=1e-4)
    assert second.metrics["kl_to_first"] > 0.1
    scores = {choice.step: choice.score for choice in third.choices}
    assert scores == {"a": first.metrics["judge_mean"], "b": second.metrics["judge_mean"], "c": scores["a"]}
    order = [choice.step for choice in third.choices]
    assert order == (["b", "a", "c"] if scores["b"] > scores["a"] else ["a", "c", "b"])


def test_evaluations_by_another_judge_or_on_other_prompts_are_not_compared(tmp_path):
    def evaluation(judge: str, num_answers: int) -> str:
        folder = tmp_path / f"{judge}-{num_answers}"
        folder.mkdir()
        groups = [
            Candidates(
                prompt=row.prompt,
                prompt_id=row.prompt_id,
                group_id=row.group_id,
                candidates=candidates(*[("a", 0.5, True)] * num_answers),
            )
            for row in PROMPTS
        ]
        (folder / "answers.jsonl").write_text("".join(group.to_json() + "\n" for group in groups))
        Artifact(
            stage="evaluate_policy",
            step="",
            recipe_version=1,
            keys={},
            inputs={},
            outputs={},
            files={},
            metrics={"judge": judge},
        ).write(folder)
        return str(folder)

    (earlier,) = read_earlier([evaluation("gold", 2)], "gold", PROMPTS, 2).evaluations
    assert earlier.scores_PK.shape == (7, 2) and earlier.choices == [] and earlier.mean_answer_tokens == 3
    with pytest.raises(ConfigError, match=r"was judged by other, this one by gold: not comparable"):
        read_earlier([evaluation("other", 2)], "gold", PROMPTS, 2)
    with pytest.raises(ConfigError, match=r"other prompts or another num_answers"):
        read_earlier([evaluation("gold", 3)], "gold", PROMPTS, 2)
    with pytest.raises(ConfigError, match=r"other prompts or another num_answers"):
        read_earlier([str(tmp_path / "gold-2")], "gold", PROMPTS[::-1], 2)
    with pytest.raises(DataError, match=r"holds no finished evaluation"):
        read_earlier([str(tmp_path)], "gold", PROMPTS, 2)


def test_without_a_judge_answers_are_written_and_nothing_is_scored_or_chosen(tiny_model, rows, tmp_path):
    keys = {"prompts": [rows / "prompts.jsonl"], "num_prompts": 3, "num_answers": 1, "max_new_tokens": 6}
    record = run_here("evaluate_policy", tmp_path / "a", model_name_or_path=tiny_model, policy_step="p", **keys)
    groups = read_rows(tmp_path / "a" / "answers.jsonl", Candidates)
    assert [(c.score, c.policy) for group in groups for c in group.candidates] == [(None, "p")] * 3
    lengths = [candidate.num_tokens for group in groups for candidate in group.candidates]
    assert record.metrics["mean_answer_tokens"] == pytest.approx(np.mean(lengths))
    assert record.metrics["prompts"] == 3 and record.choices == []
    assert record.metrics["judge"] is None and record.reasons == {"judge": "no judge is given"}


def test_an_evaluation_has_its_numbers_by_tag_and_the_gate_takes_a_condition_for_each(
    tiny_model, tied_model, tmp_path, monkeypatch
):
    """The judge likes the second policy on all prompts but those about code."""
    (tmp_path / "tagged_judge.py").write_text(
        "from pathlib import Path\n"
        "def score(prompt, answer, ended):\n"
        "    is_second = Path(__file__).with_name('second').exists()\n"
        "    return (-1.0 if 'code' in str(prompt) else 2.0) if is_second else 0.0\n"
    )
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    lines = [{"prompt": f"{tag} {n}?", "tag": tag} for tag in ("code", "math") for n in range(10)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {
        "prompts": [tmp_path / "prompts.jsonl"],
        "judge_function": "tagged_judge:score",
        "num_answers": 1,
        "max_new_tokens": 2,
        "gate_max_tag_fall": 0.5,
    }
    first = run_here("evaluate_policy", tmp_path / "a", model_name_or_path=tiny_model, policy_step="a", **keys)
    assert (first.metrics["gate"], first.metrics["tag/code/prompts"]) == ("accept", 10)
    (tmp_path / "second").touch()
    keys |= {"first_policy": tiny_model, "previous": [tmp_path / "a"]}
    second = run_here("evaluate_policy", tmp_path / "b", model_name_or_path=tied_model, policy_step="b", **keys)
    assert second.metrics["judge_mean"] == 0.5 and second.metrics["gate"] == "keep"
    assert second.metrics["gate_reason"] == "gain on code -1.000, at least -1.000 < -0.5"
    assert second.metrics["tag/math/win_rate_vs_first"] == 1.0 and second.metrics["tag/code/win_rate_vs_first"] == 0.0
