"""`alignloop score`: the same rows with scores, and what is printed of them."""

import json

import pytest

from commands.score import summary, with_scores
from data_schemas.reading import read_conversations, read_rows
from data_schemas.rows import Candidates, Conversation, Message, PreferencePair, Prompt
from engine.judging.scoring import RewardModelScorer
from engine.judging.shared_scoring import ScoringSettings
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from tests.commands.programs import call, jsonl
from tests.toy_prompts import PROMPTS, candidates
from tests.toy_rows import conversation, pair, write_jsonl


def group(prompt: Prompt, *texts: str) -> Candidates:
    answers = candidates(*((text, 0.0, True) for text in texts))
    return Candidates(prompt=prompt.prompt, prompt_id=prompt.prompt_id, group_id=prompt.group_id, candidates=answers)


def pair_of(chosen: str, rejected: str) -> PreferencePair:
    best, worst = ([Message(role="assistant", content=text)] for text in (chosen, rejected))
    return PreferencePair(prompt=PROMPTS[0].prompt, chosen=best, rejected=worst)


def test_the_printed_numbers_are_those_of_the_rows():
    rows = [with_scores(group(PROMPTS[0], "a", "b"), [1.0, 3.0]), with_scores(group(PROMPTS[1], "a", "b"), [2.0, -2.0])]
    assert [row.spread for row in rows if isinstance(row, Candidates)] == [1.0, 2.0]
    assert list(summary(rows)) == [
        "mean 1.000, standard deviation 1.871, from -2.000 to 3.000",
        "best of 2: mean 2.500 over 2 prompts",
    ]
    pairs = [with_scores(pair_of("a", "b"), [1.0, 3.0]), with_scores(pair_of("c", "d"), [5.0, 1.0])]
    assert list(summary(pairs))[1] == "accuracy 0.500, mean margin 1.000 over 2 pairs"


def test_answers_of_generate_have_the_scores_of_the_scorer_of_the_stages(tiny_reward_model, tmp_path, capsys):
    rows = [group(prompt, "Paris.", "", "I do not know") for prompt in PROMPTS[:3]]
    jsonl(tmp_path / "a.jsonl", *rows)
    assert call("score", tiny_reward_model, tmp_path / "a.jsonl", "-o", tmp_path / "scored.jsonl") == 0
    scored = read_rows(tmp_path / "scored.jsonl", Candidates)
    stage = Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)
    settings = ScoringSettings.of(GenerationArguments(use_cpu=True))
    turns = [[Message(role="assistant", content="Paris.")], [], [Message(role="assistant", content="I do not know")]]
    expected = RewardModelScorer(stage, str(tiny_reward_model), settings).score_turns(
        "expected", [(prompt, turn) for prompt in PROMPTS[:3] for turn in turns]
    )
    assert [answer.score for row in scored for answer in row.candidates] == expected
    assert len(set(expected)) == 6  # the empty answers have the lowest score of the others
    assert [answer.text for answer in scored[2].candidates] == ["Paris.", "", "I do not know"]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path}/scored.jsonl: 9 answers scored" and out[2].startswith("best of 3: mean ")


def test_columns_that_are_not_written_are_listed_for_every_kind_of_rows(tiny_reward_model, tmp_path, capsys):
    stored = json.loads(group(PROMPTS[0], "Paris.", "I do not know").to_json())
    for name, row in (("pairs", pair(0)), ("groups", stored)):
        write_jsonl(tmp_path / f"{name}.jsonl", [row | {"my_id": 3}])
        output = tmp_path / f"{name}-scored.jsonl"
        assert call("score", tiny_reward_model, tmp_path / f"{name}.jsonl", "-o", output) == 0
        assert f"{name}.jsonl: the columns my_id are not read, and are not written" in capsys.readouterr().err


def test_pairs_and_dialogs_are_scored_in_their_own_rows(tiny_reward_model, tmp_path, capsys):
    write_jsonl(tmp_path / "pairs.jsonl", [pair(number) for number in range(6)])
    assert call("score", tiny_reward_model, tmp_path / "pairs.jsonl", "-o", tmp_path / "p.jsonl") == 0
    pairs = read_rows(tmp_path / "p.jsonl", PreferencePair)
    right = sum((row.chosen_score or 0) > (row.rejected_score or 0) for row in pairs)
    assert f"accuracy {right / 6:.3f}, mean margin " in capsys.readouterr().out

    untrained = {"role": "assistant", "content": "!", "weight": 0}
    mixed = [*conversation(1)["messages"], {"role": "user", "content": "Sure?"}, untrained]
    dialogs = [*map(conversation, range(3)), {"messages": mixed}, {"prompt": "Hi?", "response": "Ho."}]
    write_jsonl(tmp_path / "dialogs.jsonl", dialogs)
    assert call("score", tiny_reward_model, tmp_path / "dialogs.jsonl", "-o", tmp_path / "d.jsonl") == 0
    scored = read_rows(tmp_path / "d.jsonl", Conversation)
    assert [row.messages[-1].content for row in scored[3:]] == ["!", "Ho."]
    read_back = [row.model_copy(update={"score": None}) for row in read_conversations(tmp_path / "d.jsonl").rows]
    assert read_back == read_conversations(tmp_path / "dialogs.jsonl").rows
    # The pair and the dialog with the same prompt and answer have the same score.
    assert [pairs[place].chosen_score for place in (1, 2)] == pytest.approx(
        [row.score for row in scored[1:3]], abs=1e-5
    )
