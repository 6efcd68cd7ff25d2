"""Folders with several splits, and folders that `datasets` saved."""

import logging

import pytest

from data_schemas.folders import data_files
from data_schemas.reading import read_conversations, read_documents
from tests.data_schemas.raw_rows import assistant, fails, lines, messages_of, user


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines(folder / name, {"text": name})


def texts(folder, split=""):
    return [row.text for row in read_documents(f"{folder}{split}").rows]


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("train/a.jsonl", "test/a.jsonl"),
        ("pairs_train.jsonl", "pairs-val.jsonl"),
        ("x/training.jsonl", "x/dev.jsonl"),
        ("train-00000-of-00001.jsonl", "evaluation-00000-of-00001.jsonl"),
    ],
)
def test_only_the_training_split_is_read_and_the_log_says_so(tmp_path, names, caplog):
    write(tmp_path, *names)
    with caplog.at_level(logging.INFO):
        assert texts(tmp_path) == [names[0]]
    assert f"{tmp_path}: only the split train is read" in caplog.text


def test_another_split_or_all_of_them_are_named_in_the_path(tmp_path):
    write(tmp_path, "train.jsonl", "dev.jsonl", "test.jsonl", "eval/more.jsonl")
    assert texts(tmp_path, ":test") == ["eval/more.jsonl", "test.jsonl"]
    assert texts(tmp_path, ":validation") == texts(tmp_path, ":dev") == ["dev.jsonl"]
    assert texts(tmp_path, ":all") == ["dev.jsonl", "eval/more.jsonl", "test.jsonl", "train.jsonl"]


@pytest.mark.parametrize(
    "names",
    [
        ("a.jsonl", "b.jsonl"),
        ("train.jsonl", "more.jsonl"),
        ("test_a.jsonl", "test_b.jsonl"),  # one split, whichever it is
        ("contest.jsonl", "latest.jsonl", "trainer.jsonl"),  # words, not parts of words
    ],
)
def test_without_several_splits_every_file_is_read(tmp_path, names):
    write(tmp_path, *names)
    assert sorted(texts(tmp_path)) == sorted(names)


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (("train.jsonl", "test.jsonl", "all.jsonl"), "no split: all.jsonl, test: test.jsonl, train: train.jsonl"),
        (("test.jsonl", "val.jsonl"), "test: test.jsonl, validation: val.jsonl"),
        (("more.jsonl", "test.jsonl"), "no split: more.jsonl, test: test.jsonl"),
        (
            ("train_sft-00000-of-00002.jsonl", "train_sft-00001-of-00002.jsonl", "train_prefs-00000-of-00001.jsonl"),
            "train_prefs: train_prefs-00000-of-00001.jsonl, train_sft: train_sft-00000-of-00002.jsonl",
        ),
    ],
)
def test_files_whose_use_is_open_are_refused(tmp_path, names, listed):
    write(tmp_path, *names)
    message = fails(read_documents, tmp_path)
    assert message.startswith(f"{tmp_path} has files of several splits ({listed}); name the one to read, as in ")
    if "train_sft" in listed:
        assert texts(tmp_path, ":train_sft") == list(names[:2])


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    write(tmp_path, "train.jsonl", "test.jsonl")
    assert fails(read_documents, f"{tmp_path}:dev") == (
        f"{tmp_path} has no split 'dev'; its files are of test: test.jsonl, train: train.jsonl"
    )
    assert fails(read_documents, f"{tmp_path}/train.jsonl:test").endswith(
        "train.jsonl is a file and has no split 'test'; leave the split out"
    )


# -- folders of `datasets` ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """Two folders: one of Dataset.save_to_disk with three files, one of DatasetDict.save_to_disk."""
    import datasets

    datasets.disable_progress_bars()
    dialogs = [{"messages": [user(f"q{n}"), assistant(f"a{n}")]} for n in range(6)]
    one = datasets.Dataset.from_list(dialogs)
    one.save_to_disk(tmp_path / "one", num_shards=3)
    both = datasets.DatasetDict(train=one.select(range(4)), test=one.select([4, 5]))
    both.save_to_disk(tmp_path / "both")
    datasets.DatasetDict(sft=one, prefs=one).save_to_disk(tmp_path / "named")
    return tmp_path


def questions(path):
    return [messages[0]["content"] for messages in messages_of(read_conversations(path))]


def test_a_saved_data_set_is_its_rows(saved):
    assert questions(saved / "one") == ["q0", "q1", "q2", "q3", "q4", "q5"]
    (saved / "one" / "cache-1234.arrow").write_bytes(b"of a map() call")
    assert [file.name[:10] for file in data_files(saved / "one")] == ["data-00000", "data-00001", "data-00002"]


def test_a_saved_dictionary_of_data_sets_is_its_training_split(saved):
    assert questions(saved / "both") == questions(saved / "both" / "train") == ["q0", "q1", "q2", "q3"]
    assert questions(f"{saved / 'both'}:test") == ["q4", "q5"]
    assert "(prefs: prefs/data-00000-of-00001.arrow, sft: sft/data-" in fails(read_conversations, saved / "named")
    assert len(questions(f"{saved / 'named'}:sft")) == 6


def test_a_saved_data_set_with_a_missing_file_is_not_read(saved):
    (saved / "one" / "data-00001-of-00003.arrow").unlink()
    assert fails(read_conversations, saved / "one") == (
        f"{saved / 'one'} is not complete: state.json lists data-00001-of-00003.arrow, which does not exist"
    )


def test_a_cut_arrow_file_is_one_line(saved):
    path = saved / "one" / "data-00001-of-00003.arrow"
    path.write_bytes(path.read_bytes()[:300])
    assert fails(read_conversations, saved / "one").startswith(f"{path} ")
