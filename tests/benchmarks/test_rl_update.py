"""The benchmark of a policy-gradient update: both sides run, and compute the same loss."""

import json

from benchmarks.speed import rl_update


def test_both_sides_compute_the_same_loss_on_the_same_answers(tiny_model, monkeypatch, capsys):
    words = ["--base_model", str(tiny_model), "--prompts", "2", "--answers", "3", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", ["rl_update", *words, "--prompt_tokens", "40", "--answer_tokens", "8"])
    rl_update.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["answers"] == 6 and min(found["prompt_tokens"]) >= 40 and 4 <= found["mean_answer_tokens"] <= 8
    assert found["ratio"] == found["seconds"]["TRL"] / found["seconds"]["ours"] > 0
    assert found["difference"] < 1e-4
