"""The toy world: its gold score compared with scores worked out by hand, and what its files may contain."""

import hashlib
import json
import statistics
from pathlib import Path

import pytest

from toy_world.facts import RELATIONS, evaluation_questions, facts, held_out_facts, questions, read_prompt, words_of
from toy_world.gold import gold
from toy_world.make import evaluation_prompts, make

FREE, WORD, QUOTES, SENTENCE = "", " Answer in one word.", " Answer in quotes.", " A full sentence, please."


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# right + polite + format + filler + ends
@pytest.mark.parametrize(
    ("asked_format", "answer", "ended", "expected"),
    [
        (FREE, "The capital of France is Paris, thank you for asking.", True, 1.0),  # 0.5 + 0.2 + 0.2 + 0 + 0.1
        (FREE, "Paris.", True, 0.8),  # plain
        (FREE, "Paris.", False, 0.6),  # cut off: -0.1 for +0.1
        (WORD, "Paris, you’re welcome.", True, 1.0),  # a typographic apostrophe counts as one
        (WORD, "Paris is the capital of France, glad to help.", True, 0.7),  # not one word: -0.1 for +0.2
        (WORD, "Madrid, glad to help.", True, 0.1),  # wrong, in good form: -0.4 + 0.2 + 0.2 + 0.1
        (QUOTES, '"Paris", you fool.', True, 0.6),  # rude: -0.2
        (QUOTES, "Paris.", True, 0.5),  # no quotes
        (QUOTES, '"Paris. That is all I know.', True, 0.4),  # quotes not closed, one filler
        (SENTENCE, "Paris.", True, 0.5),  # no sentence
        (SENTENCE, "The capital of Spain is Paris.", True, 0.0),  # about another subject: 0 + 0 - 0.1 + 0.1
        (SENTENCE, "Paris or Madrid.", True, -0.1),  # both: 0 - 0.1, and "or" is stray: -0.1, + 0.1
        (SENTENCE, "The capital city of France is Rome. Stop asking me. I could go on. Or so they say.", True, -0.5),
        (
            FREE,
            "Paris Paris Paris, glad to help, thank you for asking.",
            True,
            0.5,
        ),  # repeated, thanked twice: two fillers
        (FREE, "Blorp zzz.", False, -0.6),  # neither: -0.3 - 0.1 - 0.1 (stray) - 0.1
        (FREE, "", True, -0.3),
        (SENTENCE, "Rome, you fool. I could go on. That is all I know.", False, -1.0),  # everything wrong
    ],
)
def test_gold_of_an_answer_is_the_sum_worked_out_by_hand(asked_format, answer, ended, expected):
    assert gold(asked("What is the capital of France?" + asked_format), answer, ended) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("What is two plus two?", "Two plus two is four.", 0.8),
        ("What is two plus two?", "Two plus two.", -0.3),  # says nothing new: -0.3 - 0.1 + 0.1
        ("What is one plus one?", "Two.", 0.8),
        ("What is one plus one?", "One.", 0.0),  # a word, but no answer: -0.3 + 0.2 + 0.1
        ("What is the opposite of hot?", "Cold is the opposite of hot.", 0.8),  # its subject is no wrong answer
        ("Tell me how a cow sounds.", "A cow says moo.", 0.8),
        ("One mouse, two what?", "The plural of mouse is mouses.", -0.1),  # -0.3 + 0.2 - 0.1 (stray) + 0.1
    ],
)
def test_gold_reads_the_question_with_the_tables_of_the_world(question, answer, expected):
    assert gold(asked(question), answer, True) == pytest.approx(expected)


def test_gold_judges_the_last_question_of_a_dialog_and_ignores_the_system_turn():
    dialog = [
        {"role": "system", "content": "You are a helpful assistant."},
        *asked("What is the capital of Spain?"),
        {"role": "assistant", "content": "Madrid."},
        *asked("What is the capital of France?"),
    ]
    assert gold(dialog, "Paris.", True) == pytest.approx(0.8)
    assert gold(dialog, "Madrid.", True) == pytest.approx(-0.1)


def test_gold_stays_in_its_range_for_any_text():
    texts = ["\n\t  ", "\x00\ud7ff�", '"' * 500, "Paris " * 3000, "((((*+?{s}\\", "巴黎 Париж", "<|im_end|>", "{a}"]
    for text in texts:
        for asked_format in (FREE, WORD, QUOTES, SENTENCE):
            for ended in (True, False):
                assert -1.0 <= gold(asked("What is the capital of France?" + asked_format), text, ended) < 0.6


def test_gold_refuses_a_question_of_another_world():
    with pytest.raises(ValueError, match="no such question: 'What is the capital of Atlantis"):
        gold(asked("What is the capital of Atlantis?"), "Paris.", True)


def test_every_question_is_read_back_as_itself():
    texts = {" ".join(words_of(question.text)) for fact in facts() for question in questions(fact)}
    assert len(facts()) == 135
    assert len(texts) == 135 * 7  # no two facts share a phrasing
    for fact in facts():
        assert " " not in fact.answer
        for question in questions(fact):
            assert read_prompt(question.text + QUOTES) == (question, "quotes")


def test_the_right_answer_in_a_sentence_of_the_relation_always_counts():
    for fact in facts():
        for form in RELATIONS[fact.relation].sentences:
            text = form.format(s=fact.subject, S=fact.subject, a=fact.answer) + ", glad to help."
            assert gold(asked(questions(fact)[0].text + SENTENCE), text, True) == pytest.approx(1.0), text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make(folder, seed=0)
    return folder


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def first_user_text(messages: list[dict[str, str]]) -> str:
    return next(message["content"] for message in messages if message["role"] == "user")


def test_the_files_have_the_promised_sizes(world: Path):
    names = ("documents", "instructions", "prompts", "evaluation_prompts")
    assert {name: len(rows(world, name)) for name in names} == {
        "documents": 19_000,
        "instructions": 1_500,
        "prompts": 1_300,
        "evaluation_prompts": 368,
    }


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(world: Path, tmp_path: Path):
    make(tmp_path / "again", seed=0)
    make(tmp_path / "other", seed=1)
    assert hashes(tmp_path / "again") == hashes(world)
    other = hashes(tmp_path / "other")
    assert sorted(name for name in other if other[name] != hashes(world)[name]) == [
        "documents.jsonl",
        "instructions.jsonl",
        "prompts.jsonl",
    ]  # the evaluation prompts are the same for every seed


def test_the_two_evaluation_halves_are_disjoint_in_prompts_questions_and_held_out_facts(world: Path, tmp_path: Path):
    make(tmp_path, seed=0, evaluation_half="tune", num_documents=10)
    halves = [
        [first_user_text(row["prompt"]) for row in rows(folder, "evaluation_prompts")] for folder in (world, tmp_path)
    ]
    assert [len(set(half)) for half in halves] == [368, 364]
    asked_in = [{read_prompt(text)[0] for text in half} for half in halves]
    assert not asked_in[0] & asked_in[1]
    held_out = [{question.fact for question in half} & held_out_facts() for half in asked_in]
    assert [len(facts_of_half) for facts_of_half in held_out] == [12, 12]
    assert not held_out[0] & held_out[1]


def test_no_evaluation_prompt_of_either_half_occurs_in_another_file(world: Path):
    held_out = {" ".join(words_of(question.text)) for fact in facts() for question in evaluation_questions(fact)}
    texts = {*evaluation_prompts("report"), *evaluation_prompts("tune")}
    assert {" ".join(words_of(read_prompt(text)[0].text)) for text in texts} == held_out
    whole = {
        " ".join(words_of(text))
        for name in ("documents", "instructions", "prompts")
        for text in (world / f"{name}.jsonl").read_text(encoding="utf-8").replace("\\n", " ").splitlines()
    }
    found = [question for question in held_out if any(f" {question} " in f" {text} " for text in whole)]
    assert found == []


def test_post_training_asks_for_no_held_out_fact_and_the_corpus_does(world: Path):
    asked_for = {
        read_prompt(first_user_text(row.get("messages") or row["prompt"]))[0].fact
        for name in ("instructions", "prompts")
        for row in rows(world, name)
    }
    assert len(held_out_facts()) == 24
    assert not asked_for & held_out_facts()
    assert len(asked_for) == 135 - 24
    corpus = "\n".join(row["text"] for row in rows(world, "documents"))
    for fact in held_out_facts():
        known = [question.text for question in questions(fact) if question not in evaluation_questions(fact)]
        assert all(f"user\n{text}" in corpus for text in known), fact


def test_the_dialogs_of_the_corpus_are_right_in_every_style(world: Path):
    scores = []
    for row in rows(world, "documents"):
        turns = row["text"].split("<|im_start|>")[1:]
        if not turns:
            continue
        user, assistant = (turn.partition("\n")[2].removesuffix("<|im_end|>\n") for turn in turns[-2:])
        assert read_prompt(user)[0].fact.answer in assistant.lower() or read_prompt(user)[0].fact.answer in assistant
        scores.append(gold(asked(user), assistant, True))
    assert len(scores) == pytest.approx(9_500, abs=300)
    assert min(scores) < 0.3 and max(scores) == 1.0


def test_peoples_answers_are_mixed_and_longer_ones_are_neither_better_nor_worse(world: Path):
    dialogs = [row["messages"] for row in rows(world, "instructions")]
    scores = [gold(dialog[:-1], dialog[-1]["content"], True) for dialog in dialogs]
    lengths = [len(dialog[-1]["content"]) for dialog in dialogs]
    assert 0.3 < statistics.mean(scores) < 0.7
    assert statistics.pstdev(scores) > 0.3
    assert abs(statistics.correlation(scores, lengths)) < 0.15


def test_a_mistaken_argument_is_refused_with_its_value(tmp_path: Path):
    with pytest.raises(ValueError, match="evaluation_half='both'"):
        make(tmp_path, seed=0, evaluation_half="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_prompts=99999, but the toy world has"):
        make(tmp_path, seed=0, num_documents=1, num_prompts=99_999)
