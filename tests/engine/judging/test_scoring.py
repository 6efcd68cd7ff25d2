"""Scores by a reward model and by a function."""

import pytest
import torch

from data_schemas.errors import ConfigError
from engine.judging.scoring import ScoringItem, score_by_function, score_by_reward_model
from engine.models.loading import load_reward
from engine.tokens.template import encode_prompt
from tests.toy_prompts import PROMPTS

ANSWERED = [
    ScoringItem(prompt, text, ended=True)
    for prompt, text in zip(PROMPTS, ["Rome.", "", "It is a large city. " * 4, "Oslo", "\n", "Sure?", "x"], strict=True)
]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_reward_scores_do_not_depend_on_the_batch_size(batch_size, tiny_reward_model, tokenizer, stage):
    scores = score_by_reward_model(
        stage,
        "scores",
        str(tiny_reward_model),
        ANSWERED,
        device=torch.device("cpu"),
        dtype="float32",
        batch_size=batch_size,
    )
    model = load_reward(str(tiny_reward_model), dtype="float32").eval()
    plain = {}
    for number, item in enumerate(ANSWERED):
        if item.text.strip():
            row = encode_prompt(tokenizer, item.prompt.prompt)
            row = [*row, *tokenizer(item.text)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                hidden = model.model(input_ids=torch.tensor([row])).last_hidden_state
                plain[number] = float(model.score(hidden[0, -1]))
    assert [scores[number] for number in plain] == pytest.approx(list(plain.values()), abs=1e-5)
    # Empty answers score as the lowest, so that none of them is ever chosen.
    assert scores[1] == scores[4] == min(scores)
    assert scores[1] == pytest.approx(min(plain.values()), abs=1e-5)


def test_a_function_scores_prompt_answer_and_end(stage, tmp_path, monkeypatch):
    (tmp_path / "judge.py").write_text(
        "def score(prompt, answer, ended):\n    return len(answer) + 100 * ended + 1000 * len(prompt)\n"
        "def bad(prompt, answer, ended):\n    return float('nan')\n"
        "def broken(prompt, answer, ended):\n    return prompt[7]\n"
        "def endless(prompt, answer, ended):\n"
        "    while True:\n        try:\n            x = 1\n        except Exception:\n            pass\n"
    )
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    items = [ScoringItem(PROMPTS[0], "abc", True), ScoringItem(PROMPTS[0], "ab", False)]
    assert score_by_function(stage, "judge", "judge:score", items, timeout=9) == [1103.0, 1002.0]
    for name, message in (
        ("bad", r"judge:bad\(…, 'abc', True\) gave nan, expected a finite number"),
        ("broken", r"judge:broken\(…, 'abc', True\) raised IndexError: list index out of range"),
        ("endless", r"judge:endless\(…, 'abc', True\) took longer than function_timeout=0.2 seconds"),
    ):
        with pytest.raises(ConfigError, match=message):
            score_by_function(stage, "judge", f"judge:{name}", items, timeout=0.2)
