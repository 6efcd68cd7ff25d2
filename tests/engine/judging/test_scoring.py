"""Scores by a reward model and by a function."""

from collections.abc import Sequence

import pytest
import torch

from data_schemas.errors import ConfigError, StageError
from engine.judging.scoring import FunctionScorer, RewardModelScorer, score_by_prompt, scored_candidates
from engine.judging.shared_scoring import ScoringSettings, SharedScorer
from engine.models.loading import load_reward
from engine.sampling.answers import Answer
from engine.tokens.template import encode_prompt
from tests.toy_prompts import PROMPTS

ANSWERED = [
    Answer(prompt, 0, text, [], ended=True)
    for prompt, text in zip(PROMPTS, ["Rome.", "", "It is a large city. " * 4, "Oslo", "\n", "Sure?", "x"], strict=True)
]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_reward_scores_do_not_depend_on_the_batch_size(batch_size, tiny_reward_model, tokenizer, stage):
    settings = ScoringSettings(torch.device("cpu"), "float32", batch_size)
    scores = RewardModelScorer(stage, str(tiny_reward_model), settings)("scores", ANSWERED)
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
    # Empty answers get the lowest score, so that none of them is ever chosen.
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
    answers = [Answer(PROMPTS[0], 0, "abc", [], True), Answer(PROMPTS[0], 1, "ab", [], False)]
    assert FunctionScorer(stage, "judge:score", 9)("judge", answers) == [1103.0, 1002.0]
    for name, message in (
        ("bad", r"judge:bad\(…, 'abc', True\) gave nan, expected a finite number"),
        ("broken", r"judge:broken\(…, 'abc', True\) raised IndexError: list index out of range"),
        ("endless", r"judge:endless\(…, 'abc', True\) took longer than function_timeout=0.2 seconds"),
    ):
        with pytest.raises(ConfigError, match=message):
            FunctionScorer(stage, f"judge:{name}", 0.2 if name == "endless" else 60)("judge", answers)


def test_a_function_that_asks_for_the_reference_gets_it(stage, tmp_path, monkeypatch):
    (tmp_path / "exact.py").write_text(
        "def score(prompt, answer, ended, reference=''):\n    return -1 if reference is None "
        "else float(answer == reference)\n"
    )
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))

    def scores(*references):
        prompts = [PROMPTS[0].model_copy(update={"reference": reference}) for reference in references]
        return FunctionScorer(stage, "exact:score", 9)(
            "judge", [Answer(prompt, 0, "42", [], True) for prompt in prompts]
        )

    assert scores("42", "43", None) == [1.0, 0.0, -1.0]
    assert scores("43", "42", None) == [0.0, 1.0, -1.0]  # another reference: not the journal's score


def test_scores_return_in_the_groups_of_their_prompts():
    groups = [[Answer(PROMPTS[n], k, "x" * (n + k), [], True) for k in range(count)] for n, count in ((0, 2), (3, 1))]

    def by_length(name: str, answers: Sequence[Answer]) -> list[float]:
        return [float(len(answer.text)) for answer in answers]

    assert score_by_prompt(by_length, "lengths", groups) == [[0.0, 1.0], [3.0]]


def test_a_reward_model_with_one_score_for_all_answers_is_an_error_of_the_stage(
    stage, tiny_reward_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(SharedScorer, "rewards", lambda self, groups: [0.5 for group in groups for _ in group])
    scorer = RewardModelScorer(stage, str(tiny_reward_model), ScoringSettings(torch.device("cpu"), "float32", 8))
    with pytest.raises(
        StageError, match=r"gives each of 5 different answers the score 0.5: its rewards have collapsed"
    ):
        scorer("collapsed", ANSWERED)


def test_the_row_of_a_prompts_answers_has_their_scores():
    answers = [Answer(PROMPTS[0], 0, "a", [5, 1], True, "old"), Answer(PROMPTS[0], 1, "b", [5, 6, 7], False, "new")]
    group = scored_candidates(answers, [0.25, -1.0])
    assert (group.prompt, group.prompt_id, group.group_id) == (PROMPTS[0].prompt, PROMPTS[0].prompt_id, group.group_id)
    assert [(one.text, one.k, one.num_tokens, one.ended, one.score, one.policy) for one in group.candidates] == [
        ("a", 0, 2, True, 0.25, "old"),
        ("b", 1, 3, False, -1.0, "new"),
    ]
