"""Sampling, scoring, and what becomes of the answers: the same rows for any batch size and number of processes."""

import math
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call_stage, run_here

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from data_schemas.reading import read_pairs, read_prompts, read_rows
from data_schemas.rows import Candidate, Candidates, Conversation, Message, Prompt
from engine.judging.annotators import Group, Judgement
from engine.judging.comparison import compare_policies, distinct_2, paired_interval, read_earlier, wins
from engine.judging.scoring import ScoringItem, score_by_function, score_by_reward_model
from engine.judging.shared_scoring import SharedScorer, group_by_prompt, in_groups
from engine.models.loading import load_causal, load_reward, load_tokenizer
from engine.runtime import preemption
from engine.runtime.arguments import GenerationArguments
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer, SampleRequest
from engine.sampling.prompts import draw_prompts
from engine.sampling.transformers_engine import _Sample, noise, sample
from engine.tokens.template import encode_prompt
from stages import annotate, rejection_sampling
from stages.annotate import strength_of
from stages.rejection_sampling import keep_scores_above, pick_winners, request_for, rows_of


def question(text: str) -> Prompt:
    return Prompt(prompt=[Message(role="user", content=text)])


PROMPTS = [question(f"Capital of {name}?" + " Please." * (number % 3)) for number, name in enumerate("ABCDEFG")]


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)


@pytest.fixture(scope="module")
def reward_model(tiny_model, rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rm") / "rm"
    run_here(
        "reward_model",
        folder,
        model_name_or_path=tiny_model,
        train_data=[rows / "pairs.jsonl"],
        eval_data=[rows / "pairs_eval.jsonl"],
        max_steps=1,
    )
    return folder / "model"


# -- choosing a token -------------------------------------------------------------------------------------------------


def test_generate_is_left_the_token_that_the_noise_of_its_position_chooses():
    scores = torch.log(torch.tensor([[0.1, 0.5, 0.4]]))
    # Three prompt tokens and one generated already: the noise of position 1 counts.
    sampler = _Sample(torch.tensor([[0.05, 0.61]]), torch.ones(1), num_prompt_tokens=3, top_p=1.0)
    assert sampler(torch.zeros(1, 4, dtype=torch.long), scores)[0].tolist() == [-math.inf, -math.inf, 0.0]
    assert sampler(torch.zeros(1, 3, dtype=torch.long), scores)[0].tolist() == [0.0, -math.inf, -math.inf]


def test_noise_is_uniform_and_hangs_on_seed_prompt_and_k_alone():
    first = noise("7/rs", "abc", 0, 4000)
    assert np.array_equal(first[:10], noise("7/rs", "abc", 0, 10))
    for other in (noise("8/rs", "abc", 0, 4000), noise("7/rs", "abd", 0, 4000), noise("7/rs", "abc", 1, 4000)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.06
    assert first.min() >= 0 and first.max() < 1
    assert abs(first.mean() - 0.5) < 0.02 and abs(first.std() - 12**-0.5) < 0.02


def test_each_round_draws_the_next_prompts_then_wraps():
    ids = [row.prompt_id for row in draw_prompts(PROMPTS, None, seed=1, purpose="annotate")]
    assert sorted(ids) == sorted(row.prompt_id for row in PROMPTS)
    drawn = [
        [row.prompt_id for row in draw_prompts(PROMPTS, 3, seed=1, purpose="annotate", round=number)]
        for number in (1, 2, 3)
    ]
    assert drawn == [ids[:3], ids[3:6], ids[6:] + ids[:2]]
    other = [row.prompt_id for row in draw_prompts(PROMPTS[::-1], 3, seed=1, purpose="annotate")]
    assert other == drawn[0], "the order of the file does not count"
    assert [row.prompt_id for row in draw_prompts(PROMPTS, None, seed=1, purpose="other")] != ids


# -- answers ----------------------------------------------------------------------------------------------------------


def draw(folder: Path, model: Path, asks: list[SampleRequest], **keys: Any) -> list[Answer]:
    folder.mkdir()
    arguments = GenerationArguments(**{"seed": 5, "max_new_tokens": 12, "use_cpu": True, **keys})
    stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
    policy = load_causal(str(model), dtype="float32").eval()
    return sample(stage, "answers", policy, load_tokenizer(str(model)), asks, arguments, purpose="p")


ASKS = [SampleRequest(prompt, k) for prompt in PROMPTS for k in range(3)]


@pytest.fixture(scope="module")
def answers(tiny_model, tmp_path_factory) -> list[Answer]:
    return draw(tmp_path_factory.mktemp("answers") / "all", tiny_model, ASKS, generation_batch_size=32)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_do_not_hang_on_the_batch_size(batch_size, answers, tiny_model, tmp_path):
    assert draw(tmp_path / "other", tiny_model, ASKS, generation_batch_size=batch_size) == answers


def test_answers_do_not_hang_on_order_or_company(answers, tiny_model, tmp_path):
    chosen = [20, 3, 11, 4]
    other = draw(tmp_path / "other", tiny_model, [ASKS[index] for index in chosen], generation_batch_size=3)
    assert other == [answers[index] for index in chosen]
    assert draw(tmp_path / "seed", tiny_model, ASKS[:4], seed=6) != answers[:4]


def test_each_ask_has_its_own_answer_with_its_end_token(answers, tokenizer, tiny_model, tmp_path):
    assert len(answers) == len(ASKS)
    assert len({answer.text for answer in answers}) > 15
    ended = draw(tmp_path / "long", tiny_model, ASKS, max_new_tokens=400)
    assert any(answer.ended for answer in ended), "some answer must end by itself for this to show something"
    for answer in answers + ended:
        assert answer.ended == (answer.ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in answer.ids[:-1]
        assert answer.text == tokenizer.decode(answer.ids, skip_special_tokens=True)
    assert all(len(answer.ids) == 12 for answer in answers if not answer.ended)


def test_temperature_0_is_the_most_probable_continuation(tokenizer, tiny_model, tmp_path):
    greedy = draw(tmp_path / "greedy", tiny_model, ASKS[:4], temperature=0.0, max_new_tokens=5)
    assert greedy[0] == greedy[1] == greedy[2], "without noise the answers of one prompt are the same"
    model = load_causal(str(tiny_model), dtype="float32").eval()
    ids = encode_prompt(tokenizer, PROMPTS[0].prompt)
    for token in greedy[0].ids:
        with torch.no_grad():
            assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids = [*ids, token]


def test_a_sampled_answer_follows_its_noise(answers, tokenizer, tiny_model):
    """One answer worked out token by token, from the model's plain probabilities and the noise of (seed, prompt, k)."""
    model = load_causal(str(tiny_model), dtype="float32").eval()
    ids = encode_prompt(tokenizer, PROMPTS[2].prompt)
    numbers = noise("5/p", PROMPTS[2].prompt_id, 1, 12)
    for token, number in zip(answers[7].ids, numbers, strict=False):
        with torch.no_grad():
            cumulative = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1).cumsum(-1)
        assert token == int((cumulative <= number).sum())
        ids = [*ids, token]


def test_finished_parts_are_used_by_the_next_attempt(answers, tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "again"
    draw(folder, tiny_model, ASKS[:3])
    arguments = GenerationArguments(seed=5, max_new_tokens=12, use_cpu=True)
    stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
    policy = load_causal(str(tiny_model), dtype="float32")
    monkeypatch.setattr(policy, "forward", None)  # to call it would be an error
    tokenizer = load_tokenizer(str(tiny_model))
    assert sample(stage, "answers", policy, tokenizer, ASKS[:3], arguments, purpose="p") == answers[:3]


# -- the journal of finished batches ----------------------------------------------------------------------------------


class Work:
    """Squares numbers, and remembers which."""

    def __init__(self, *, kill_at: int | None = None, signal_at: int | None = None) -> None:
        self.seen: list[int] = []
        self.kill_at, self.signal_at = kill_at, signal_at

    def __call__(self, batch: Sequence[int]) -> list[int]:
        if self.kill_at in batch:
            raise KeyboardInterrupt
        if self.signal_at in batch:
            os.kill(os.getpid(), signal.SIGTERM)
        self.seen += batch
        return [number * number for number in batch]


def squares(folder: Path, work: Work, *, numbers: range = range(9), content: str = "squares") -> list[int]:
    folder.mkdir(exist_ok=True)
    stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
    return in_batches(stage, "squares", numbers, work, size=2, content=[content])


SQUARES = [number * number for number in range(9)]


def test_a_killed_stage_does_no_finished_batch_again(tmp_path):
    killed, again, once_more = Work(kill_at=5), Work(), Work(kill_at=0)
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path / "a", killed)
    assert killed.seen == [0, 1, 2, 3]
    assert squares(tmp_path / "a", again) == SQUARES
    assert again.seen == [4, 5, 6, 7, 8]
    assert squares(tmp_path / "a", once_more) == SQUARES


def test_batches_are_the_same_for_another_number_of_processes(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        squares(tmp_path / "a", Work(kill_at=5))
    works, found = [Work(), Work()], {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        thread = threading.Thread(target=lambda rank=rank: found.update({rank: squares(tmp_path / "a", works[rank])}))
        thread.start()
        while rank == 0 and works[0].seen != [4, 5, 8]:
            time.sleep(0.01)
    thread.join(10)
    deadline = time.monotonic() + 10
    while len(found) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == {0: SQUARES, 1: SQUARES}
    assert works[1].seen == [6, 7]


@pytest.mark.parametrize("damage", [b"", b"cut", b"1 [1, 2]", b"\xff\xfe"])
def test_a_damaged_batch_is_done_again_and_said(damage, tmp_path, caplog):
    squares(tmp_path / "a", Work())
    (second,) = (tmp_path / "a" / "checkpoints").glob("squares-*/1.json")
    second.write_bytes(damage)
    again = Work()
    assert squares(tmp_path / "a", again) == SQUARES
    assert again.seen == [2, 3]
    assert f"{second} is not as it was written: its batch is done again" in caplog.text


def test_sigterm_is_answered_when_the_batch_is_done(tmp_path):
    work, again = Work(signal_at=3), Work()
    with preemption.listen_for_signals(), pytest.raises(preemption.Preempted):
        squares(tmp_path / "a", work)
    assert work.seen == [0, 1, 2, 3]
    assert squares(tmp_path / "a", again) == SQUARES
    assert again.seen == [4, 5, 6, 7, 8]


def test_batches_of_another_try_beside_this_one_are_taken_over_but_only_of_the_same_content(tmp_path):
    squares(tmp_path / "a", Work())
    same, other = Work(kill_at=0), Work()
    assert squares(tmp_path / "b", same) == SQUARES
    squares(tmp_path / "c", other, content="other")
    assert other.seen == list(range(9))
    shutil.rmtree(tmp_path / "a")
    assert squares(tmp_path / "b", Work(kill_at=0)) == SQUARES


# -- scores -----------------------------------------------------------------------------------------------------------


LOG_PROB_ROWS = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14]), ([5, 6, 7], [26, 8]), ([20, 21, 22, 23, 24], [26])]


@pytest.mark.parametrize("shares", [True, False])
def test_log_prob_sums_are_the_answer_tokens_log_probs(shares, tiny_model, stage):
    model = load_causal(str(tiny_model), dtype="float32").eval()
    wanted = []
    for prompt, answer in LOG_PROB_ROWS:
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=torch.tensor([prompt + answer])).logits[0].double(), -1)
        positions = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        wanted.append(sum(float(log_probs[at, token]) for at, token in zip(positions, answer, strict=True)))
    scorer = SharedScorer(model, is_reward_model=False)
    if shares:
        assert scorer.shares_rows
    else:
        scorer.shares_rows = False
    found = in_groups(stage, "sums", LOG_PROB_ROWS, scorer.log_prob_sums, batch_size=2, content=())
    assert found == pytest.approx(wanted, abs=1e-4)


def test_batches_hold_whole_prompts_and_about_as_many_tokens():
    rows = [([1], [2] * 4), ([3] * 9, [4]), ([1], [5] * 3), ([6] * 5, [7]), ([1], [8]), ([6] * 5, [9] * 2)]
    # Prompt 1 has 1 + 4 + 3 + 1 = 9 tokens, prompt 3 has 10, prompt 6 has 8: 27 of 6 answers, so 4 answers have 18.
    assert group_by_prompt(rows, batch_size=4) == [[[3, 5], [0, 2, 4]], [[1]]]
    assert group_by_prompt(rows, batch_size=99) == [[[3, 5], [0, 2, 4], [1]]]
    assert group_by_prompt(rows, batch_size=1) == [[[3, 5]], [[0, 2, 4]], [[1]]]
    assert group_by_prompt([], batch_size=4) == []


def test_many_answers_to_one_prompt_are_several_groups(monkeypatch):
    monkeypatch.setattr("engine.judging.shared_scoring.GROUP_TOKENS", 10)
    # 3 + 4 + 3 tokens are 10; the third answer would be beyond.
    assert group_by_prompt([([1] * 3, [2] * 4), ([1] * 3, [3] * 3), ([1] * 3, [4])], batch_size=9) == [[[2], [0, 1]]]


@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_rewards_of_answers_that_share_their_prompt_are_those_of_padded_rows(batch_size, reward_model, stage):
    model = load_reward(str(reward_model), dtype="float32").eval()
    draw = random.Random(3)
    prompts = [[draw.randrange(3, 250) for _ in range(length)] for length in (30, 4, 11)]
    rows = [
        (prompt, [draw.randrange(3, 250) for _ in range(draw.randrange(1, 20))]) for _ in range(5) for prompt in prompts
    ]
    rows.append(rows[0])  # the same answer twice
    scorer, padded = (SharedScorer(model, is_reward_model=True) for _ in range(2))
    assert scorer.shares_rows
    padded.shares_rows = False
    found = in_groups(stage, "shared", rows, scorer.rewards, batch_size=batch_size, content=["shared"])
    wanted = in_groups(stage, "padded", rows, padded.rewards, batch_size=batch_size, content=["padded"])
    assert found == pytest.approx(wanted, abs=1e-5)
    assert found[0] == pytest.approx(found[-1], abs=1e-5) and len({round(score, 4) for score in found}) == 15


ANSWERED = [
    ScoringItem(prompt, text, ended=True)
    for prompt, text in zip(PROMPTS, ["Rome.", "", "It is a large city. " * 4, "Oslo", "\n", "Sure?", "x"], strict=True)
]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_reward_scores_do_not_hang_on_the_batch_size(batch_size, reward_model, tokenizer, stage):
    scores = score_by_reward_model(
        stage, "scores", str(reward_model), ANSWERED, device=torch.device("cpu"), dtype="float32", batch_size=batch_size
    )
    model = load_reward(str(reward_model), dtype="float32").eval()
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


# -- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "strength"),
    [
        (3.0, "significantly_better"),
        (1.0, "significantly_better"),
        (0.99, "better"),
        (0.5, "better"),
        (0.3, "slightly_better"),
        (0.1, "marginally_better"),
    ],
)
def test_strength_by_score_difference(difference, strength):
    assert strength_of(difference, [1.0, 0.5, 0.25]) == strength


def answered(text: str, *, ended: bool = True) -> ScoringItem:
    return ScoringItem(PROMPTS[0], text, ended)


MARGINS = [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("answers", "scores", "result"),
    [
        ([answered("a"), answered("b")], [0.1, 0.7], ("b", "a", "better", "new", "old")),
        ([answered("a"), answered("b")], [2.0, 0.7], ("a", "b", "significantly_better", "old", "new")),
        ([answered("a"), answered(" a\n")], [0.1, 0.7], "identical"),
        ([answered("a"), answered("b")], [0.7, 0.7], "equal_score"),
        ([answered(" "), answered("b")], [0.1, 0.7], "empty"),
        ([answered("a"), answered("b", ended=False)], [0.1, 0.7], "unfinished_chosen"),
        ([answered("a", ended=False), answered("b")], [0.1, 0.7], ("b", "a", "better", "new", "old")),
    ],
)
def test_two_answers_make_a_pair_or_say_why_not(answers, scores, result):
    made = annotate.compare_answers(Group(PROMPTS[0], answers), Judgement(scores), ["old", "new"], margins=MARGINS)
    if not isinstance(made, str):
        assert (made.chosen_score, made.rejected_score) == (max(scores), min(scores))
        assert made.group_id == PROMPTS[0].group_id
        made = (made.chosen[0].content, made.rejected[0].content, made.strength, made.chosen_from, made.rejected_from)
    assert made == result


def made_of(texts: str, scores: list[float], **keys: Any) -> tuple[str, ...] | str:
    """What answers of one letter make, best first; an upper-case one was cut off."""
    answers = [answered(letter, ended=letter.islower()) for letter in texts]
    made = annotate.compare_answers(Group(PROMPTS[0], answers), Judgement(scores), list(texts), margins=MARGINS, **keys)
    return made if isinstance(made, str) else tuple(answer[0].content for answer in made.ranking)


@pytest.mark.parametrize(
    ("texts", "scores", "keys", "made"),
    [
        ("abcd", [0.1, 0.9, 0.5, 0.3], {}, ("b", "a")),
        ("abcd", [0.1, 0.9, 0.5, 0.3], {"keep_rankings": True}, ("b", "c", "d", "a")),
        ("abcd", [0.5, 0.9, 0.5, 0.3], {"keep_rankings": True}, ("b", "a", "d")),  # c ties with a
        ("aba", [0.1, 0.9, 0.1], {"keep_rankings": True}, ("b", "a")),
        ("aBc", [0.1, 0.9, 0.5], {}, ("c", "a")),  # the best was cut off
        ("aBc", [0.1, 0.9, 0.5], {"keep_unfinished": True}, ("B", "a")),
        ("ABC", [0.1, 0.9, 0.5], {}, "unfinished_chosen"),
        ("abc", [0.5, 0.5, 0.5], {}, "equal_score"),
        ("aaa", [0.1, 0.2, 0.3], {}, "identical"),
        (" b ", [0.1, 0.2, 0.3], {}, "empty"),
        (" bc", [0.9, 0.2, 0.3], {}, ("c", "b")),
    ],
)
def test_several_answers_make_a_pair_or_a_ranking(texts, scores, keys, made):
    assert made_of(texts, scores, **keys) == made


def test_a_random_lower_answer_is_rejected_where_asked():
    scores = [0.1, 0.9, 0.5, 0.3]
    rejected = {made_of("abcd", scores, draw=random.Random(seed))[1] for seed in range(30)}
    assert rejected == {"a", "c", "d"}
    assert made_of("abcd", scores, draw=random.Random(3)) == made_of("abcd", scores, draw=random.Random(3))


def test_an_annotator_may_say_the_strength_itself_and_voters_their_disagreement():
    group = Group(PROMPTS[0], [answered("a"), answered("b")])
    judgement = Judgement([0.0, 9.0], strength="slightly_better", votes_VN=[[1.0, 2.0], [3.0, 0.0], [0.0, 0.5]])
    pair = annotate.compare_answers(group, judgement, ["x", "y"], margins=MARGINS)
    assert not isinstance(pair, str)
    assert (pair.strength, pair.disagreement) == ("slightly_better", pytest.approx(1 / 3))


def test_a_failed_annotation_is_gone_on_with_under_another_function(tiny_model, rows, tmp_path, monkeypatch):
    """Answers are found again in the folder of the failed step, which the mended function has made another step."""
    judge = tmp_path / "judge.py"
    judge.write_text("def score(prompt, answer, ended):\n    return 1 / 0\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    keys = {
        "prompts": [rows / "prompts.jsonl"],
        "policies": [tiny_model],
        "annotator_function": "judge:score",
        "max_new_tokens": 8,
        "keep_unfinished": True,
    }
    assert call_stage("annotate", tmp_path / "one", **keys) == 2
    assert "raised ZeroDivisionError: division by zero" in read_json(tmp_path / "one" / "outcome.json")["cause"]
    judge.write_text("def score(prompt, answer, ended):\n    return float(len(answer))\n")
    monkeypatch.setattr("engine.sampling.transformers_engine.write_answers", None)  # to call it would be an error
    run_here("annotate", tmp_path / "two", **keys)
    assert call_stage("annotate", tmp_path / "three", **keys | {"seed": 8}) == 1  # other answers are new ones


def test_annotate_writes_pairs_from_two_policies(tiny_model, tied_model, rows, tmp_path, monkeypatch):
    (tmp_path / "judge.py").write_text("def score(prompt, answer, ended):\n    return float(len(answer))\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    record = run_here(
        "annotate",
        tmp_path / "annotate",
        prompts=[rows / "prompts.jsonl"],
        policies=[tiny_model, tied_model],
        policy_names=["round-1.dpo", "round-0.sft"],
        annotator_function="judge:score",
        max_new_tokens=8,
        keep_unfinished=True,
    )
    pairs = read_pairs([tmp_path / "annotate" / "pairs.train.jsonl"]).rows
    dropped = sum(value for key, value in record.metrics.items() if key.startswith("dropped_"))
    assert len(pairs) == record.metrics["pairs"] > 0 and len(pairs) + dropped == 10
    for pair in pairs:
        assert {pair.chosen_from, pair.rejected_from} == {"round-1.dpo", "round-0.sft"}
        assert pair.chosen_score == len(pair.chosen[0].content) > len(pair.rejected[0].content)
    assert record.outputs == {"pairs.train": "pairs.train.jsonl"}  # no validation prompts: no such output


# -- the best of K ----------------------------------------------------------------------------------------------------


def candidates(*items: tuple[str, float, bool]) -> list[Candidate]:
    return [
        Candidate(text=text, k=k, num_tokens=3, ended=ended, score=score)
        for k, (text, score, ended) in enumerate(items)
    ]


def sampling(**keys: Any) -> rejection_sampling.RejectionSamplingArguments:
    return rejection_sampling.RejectionSamplingArguments(**{"policies": ["policy"]} | keys)


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        ([("a", 0.1, True), ("b", 0.9, True), ("c", 0.5, True)], 1),
        ([("a", 0.1, True), ("b", 0.9, False), ("c", 0.5, True)], 2),  # the best one was cut off
        ([("", 0.9, True), ("b", 0.1, True), ("c", 0.0, True)], 1),
        ([("a", 0.5, True), ("a ", 0.5, True), ("b", 0.5, True)], "tie"),
        ([("a", 0.9, True), ("b", 0.9, True), ("c", 0.1, True)], 0),  # the first of two best ones
        ([("a", 0.5, True), (" a", 0.5, True), ("", 0.9, True)], "identical"),
        ([("", 0.5, True), (" \n", 0.5, True)], "empty"),
        ([("a", 0.5, False), ("b", 0.7, False)], "unfinished"),
        ([("a", -2.0, True), ("b", -1.0, True)], 1),
    ],
)
def test_the_best_candidate_is_kept_or_the_reason_why_none_is(items, kept):
    assert pick_winners(candidates(*items), sampling()) == ([kept] if isinstance(kept, int) else kept)


def test_unfinished_answers_may_win_where_they_are_asked_for():
    assert pick_winners(candidates(("a", 0.1, True), ("b", 0.9, False)), sampling(keep_unfinished=True)) == [1]


def test_the_best_are_kept_by_rank_and_within_the_length_limits():
    items = [("a", 0.1, True), ("b", 0.9, True), ("b ", 0.9, True), ("c", 0.5, True)]
    assert pick_winners(candidates(*items), sampling(num_winners=2)) == [1, 3]
    assert pick_winners(candidates(*items), sampling(num_winners=9)) == [1, 3, 0]
    assert pick_winners(candidates(*items), sampling(min_answer_tokens=4)) == "length"  # all have 3 tokens
    assert pick_winners(candidates(*items), sampling(max_answer_tokens=2)) == "length"
    assert pick_winners(candidates(*items), sampling(min_answer_tokens=3, max_answer_tokens=3)) == [1]


def test_winners_below_the_least_score_are_dropped_with_the_reason():
    groups = [
        Candidates(
            prompt=PROMPTS[0].prompt,
            prompt_id="p",
            group_id="g",
            kept=[0, 1],
            candidates=candidates(("a", best, True), ("b", best - 1, True)),
        )
        for best in (1.0, 3.0)
    ]
    low, high = keep_scores_above(groups, 2.0, "below_min_score")
    assert (low.kept, low.dropped) == ([], "below_min_score")
    assert (high.kept, high.dropped) == ([0, 1], None)
    assert [group.kept for group in keep_scores_above(groups, 2.5, "below_min_score")] == [[], [0]]


def test_each_prompt_draws_its_temperature_and_system_prompt_by_the_seed():
    arguments = sampling(temperature_range=[0.4, 0.9], system_prompts=["Be brief.", "Be kind."], seed=5)
    drawn = [request_for(prompt, arguments) for prompt in PROMPTS]
    assert drawn == [request_for(prompt, arguments) for prompt in PROMPTS]
    temperatures = [temperature for _, temperature in drawn]
    assert all(0.4 <= t <= 0.9 for t in temperatures) and len(set(temperatures)) == len(PROMPTS)
    assert {prompt.prompt[0].content for prompt, _ in drawn} == {"Be brief.", "Be kind."}
    for (shown, _), prompt in zip(drawn, PROMPTS, strict=True):
        assert (shown.prompt[1:], shown.group_id) == (prompt.prompt, prompt.group_id)
        assert shown.prompt_id != prompt.prompt_id
    own = Prompt(prompt=[Message(role="system", content="Mine."), *PROMPTS[0].prompt])
    assert request_for(own, arguments)[0] == own
    assert request_for(PROMPTS[0], sampling()) == (PROMPTS[0], None)


def test_a_winners_row_has_its_prompt_as_it_came_and_the_spread_as_difficulty():
    system = [Message(role="system", content="Be kind."), *PROMPTS[0].prompt]
    group = Candidates(
        prompt=system,
        prompt_id="p",
        group_id="g",
        kept=[1],
        spread=0.5,
        candidates=candidates(("a", 0.0, True), ("b", 1.0, True)),
    )
    (row,) = rows_of(group, PROMPTS[0], source="s", keep_system_prompt=False)
    assert (row.messages[:-1], row.messages[-1].content, row.difficulty) == (PROMPTS[0].prompt, "b", 0.5)
    (row,) = rows_of(group, PROMPTS[0], source="s", keep_system_prompt=True)
    assert row.messages[:-1] == system


REJECTION_SAMPLING = {"num_answers": 3, "max_new_tokens": 10, "keep_unfinished": True, "generation_batch_size": 4}


def test_two_processes_sample_the_same_rows_as_one(tiny_model, tied_model, reward_model, rows, run_stage, tmp_path):
    # Two policies in turn, each prompt at its own temperature, under a system prompt of its own.
    keys = {
        "policies": [tiny_model, tied_model],
        "reward_model": reward_model,
        "prompts": [rows / "prompts.jsonl"],
        "temperature_range": [0.5, 1.5],
        "system_prompts": ["Be brief.", "Be kind."],
        **REJECTION_SAMPLING,
    }
    one = run_here("rejection_sampling", tmp_path / "one", **keys)
    two = run_stage("rejection_sampling", tmp_path / "two", profile="ddp", processes=2, **keys)
    for name in ("candidates.jsonl", "winners.train.jsonl", "winners.validation.jsonl"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text(), name
    assert two.metrics == one.metrics
    groups = read_rows(tmp_path / "one" / "candidates.jsonl", Candidates)
    prompts = read_prompts([rows / "prompts.jsonl"]).rows
    assert sorted(group.prompt[-1].content for group in groups) == sorted(row.prompt[-1].content for row in prompts)
    own = {row.prompt[0].content for row in prompts if row.prompt[0].role == "system"}
    assert {group.prompt[0].content for group in groups} == {"Be brief.", "Be kind."} | own
    assert all([candidate.k for candidate in group.candidates] == [0, 1, 2] for group in groups)
    sources = [str(tiny_model), str(tied_model), str(tiny_model)]
    assert all([candidate.policy for candidate in group.candidates] == sources for group in groups)
    winners = read_rows(tmp_path / "one" / "winners.train.jsonl", Conversation)
    kept = [(group, group.candidates[group.kept[0]]) for group in groups if group.kept]
    assert [row.messages[-1].content for row in winners] == [winner.text for _, winner in kept]
    assert all(winner.score == max(c.score for c in group.candidates) for group, winner in kept)
    assert [row.difficulty for row in winners] == [
        pytest.approx(np.std([candidate.score for candidate in group.candidates])) for group, _ in kept
    ]
    assert {row.messages[0].content for row in winners if row.messages[0].role == "system"} <= own


# -- evaluation of a policy -------------------------------------------------------------------------------------------


def test_wins_count_answers_with_the_same_k_and_ties_half():
    ours, theirs = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.2]])
    assert wins(ours, theirs).tolist() == [0.5, 0.75]


def test_paired_interval_holds_the_mean_and_narrows_with_agreement():
    assert paired_interval(np.full(20, 0.25), seed=0) == (0.25, 0.25, 0.25)
    differences = np.array([1.0, -1.0] * 50) + 0.1
    mean, low, high = paired_interval(differences, seed=0)
    # The mean of 100 draws of ±1 has standard deviation 0.1: 95 % within ±0.196 of 0.1.
    assert mean == pytest.approx(0.1)
    assert low == pytest.approx(0.1 - 0.196, abs=0.03) and high == pytest.approx(0.1 + 0.196, abs=0.03)
    assert paired_interval(differences, seed=0) == (mean, low, high)


def test_distinct_2_by_hand():
    # a b, b a, a b | a b: 2 distinct of 4 pairs. Texts of one word have none.
    assert distinct_2(["a b a b", "a b", "c"]) == 0.5
    assert distinct_2(["c"]) == 0.0


def test_compare_with_the_first_and_the_previous_policy():
    first, previous, ours = np.array([[0.0], [0.0]]), np.array([[1.0], [0.0]]), np.array([[0.5], [0.5]])
    metrics = compare_policies(ours, {"first": first, "previous": previous}, seed=0)
    assert metrics["win_rate_vs_first"] == 1.0 and metrics["score_gain_vs_first"] == 0.5
    assert (metrics["score_gain_vs_first_low"], metrics["score_gain_vs_first_high"]) == (0.5, 0.5)
    assert metrics["win_rate_vs_previous"] == 0.5 and metrics["score_gain_vs_previous"] == 0.0
    assert compare_policies(ours, {"first": None}, seed=0) == {"win_rate_vs_first": None, "score_gain_vs_first": None}


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
    # The same policy gives the same answers: every comparison a tie, no distance, and the earlier one stays ahead.
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

    (earlier,) = read_earlier([evaluation("gold", 2)], "gold", PROMPTS, 2)
    assert earlier.scores_PK.shape == (7, 2) and earlier.choices == [] and earlier.mean_answer_tokens == 3
    with pytest.raises(ConfigError, match=r"was judged by other, this one by gold: not comparable"):
        read_earlier([evaluation("other", 2)], "gold", PROMPTS, 2)
    with pytest.raises(ConfigError, match=r"other prompts or another num_answers"):
        read_earlier([evaluation("gold", 3)], "gold", PROMPTS, 2)
    with pytest.raises(ConfigError, match=r"other prompts or another num_answers"):
        read_earlier([str(tmp_path / "gold-2")], "gold", PROMPTS[::-1], 2)
    with pytest.raises(ConfigError, match=r"holds no finished evaluation"):
        read_earlier([str(tmp_path)], "gold", PROMPTS, 2)
