"""Annotators: votes worked out by hand, and reward models that vote."""

import shutil
from collections.abc import Callable
from typing import Literal

import pytest
import torch

from data_schemas.rows import Message, Prompt
from engine.judging.annotators import Judgement, RewardModelAnnotator, majority, mean
from engine.judging.shared_scoring import ScoringSettings
from engine.models.loading import load_tokenizer
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer
from tests.stage_runs import run_here

PROMPT = Prompt(prompt=[Message(role="user", content="Capital of France?")])


def test_the_mean_of_the_voters_scores():
    assert mean([[1.0, 0.0], [3.0, 4.0]]) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("votes", "shares"),
    [
        ([[1.0, 0.0], [5.0, 4.0], [0.0, 9.0]], [2 / 3, 1 / 3]),  # two against one, by however little
        ([[1.0, 1.0], [2.0, 0.0]], [0.75, 0.25]),  # a tie counts half
        ([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]], [0.5, 0.75, 0.25]),
    ],
)
def test_the_majority_counts_wins_over_the_other_answers(votes, shares):
    assert majority(votes) == pytest.approx(shares)


def test_disagreement_is_the_share_of_voters_that_prefer_the_rejected_answer():
    judgement = Judgement([2.0, 1.0], votes_VN=[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    assert judgement.disagreement(0, 1) == pytest.approx((0 + 1 + 0.5 + 0) / 4)
    assert judgement.disagreement(1, 0) == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert Judgement([2.0, 1.0]).disagreement(0, 1) is None


@pytest.fixture(scope="module")
def two_reward_models(tiny_model, rows, tmp_path_factory):
    folders = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("voters") / str(seed)
        run_here(
            "reward_model",
            folder,
            model_name_or_path=tiny_model,
            train_data=[rows / "pairs.jsonl"],
            eval_data=[rows / "pairs_eval.jsonl"],
            max_steps=1,
            seed=seed,
        )
        folders.append(str(folder / "model"))
    return folders


def voters(paths: list[str], folder, vote: Literal["mean", "majority"]) -> RewardModelAnnotator:
    stage = Stage("annotate", folder, {}, Tracker(folder, active=False), is_main=True)
    return RewardModelAnnotator(stage, paths, vote, ScoringSettings(torch.device("cpu"), "float32", 4))


def test_reward_models_vote_and_their_votes_are_kept(two_reward_models, tmp_path):
    groups = [
        [Answer(PROMPT, k, text, [], True) for k, text in enumerate(texts)]
        for texts in (("Paris.", "Rome.", "No."), ("Oslo.", "Lima."))
    ]
    alone = [voters([path], tmp_path, "mean")(groups) for path in two_reward_models]
    assert all(judgement.votes_VN is None for judgements in alone for judgement in judgements)
    votes_of: tuple[tuple[Literal["mean", "majority"], Callable[..., list[float]]], ...] = (
        ("mean", mean),
        ("majority", majority),
    )
    for vote, combine in votes_of:
        for number, judgement in enumerate(voters(two_reward_models, tmp_path, vote)(groups)):
            votes = [judgements[number].scores_N for judgements in alone]
            assert votes[0] != votes[1]
            for kept, vote_N in zip(judgement.votes_VN or [], votes, strict=True):
                assert kept == pytest.approx(vote_N)
            assert judgement.scores_N == pytest.approx(combine(votes))


def test_each_reward_model_reads_the_answers_in_its_own_template(two_reward_models, tmp_path):
    """The same weights twice, behind two templates."""
    first, other = two_reward_models[0], str(tmp_path / "other")
    shutil.copytree(first, other)
    tokenizer = load_tokenizer(other)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_end|>")
    tokenizer.save_pretrained(other)
    answers = [[Answer(PROMPT, k, text, [], True) for k, text in enumerate(("Paris.", "Rome."))]]
    (alone,), (own,), (together,) = (
        voters(paths, tmp_path, "mean")(answers) for paths in ([first], [other], [first, other])
    )
    assert [pytest.approx(scores) for scores in together.votes_VN or []] == [alone.scores_N, own.scores_N]
    assert alone.scores_N != pytest.approx(own.scores_N)
