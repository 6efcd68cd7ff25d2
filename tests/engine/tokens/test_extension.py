"""A tokenizer extended on a corpus: new merges behind the old ones, which are found by hand."""

import json

import pytest
from transformers import AutoTokenizer

from data_schemas.errors import ConfigError
from engine.tokens.contract import backend_json
from engine.tokens.extension import extend_tokenizer, tokens_per_character, with_rules
from tests.toy_models import byte_tokenizer

KOREAN = ["안녕하세요 여행은 언제나 좋죠", "여행은 좋아요 안녕", "언제나 안녕하세요"] * 2
OLD = ["The capital of France is Paris.", "안녕", "<|im_start|>user 12\n", "a  b\t🙂"]


@pytest.fixture(scope="module")
def old(tokenizer):
    return tokenizer


def test_the_most_frequent_pair_of_pieces_comes_first(old):
    # xq three times, zx twice: then (xq, j) twice within the same words, before pairs that occur once.
    extended = extend_tokenizer(old, ["xqj xqj zxq"], num_tokens=2)
    assert [extended.tokenizer.convert_ids_to_tokens(id) for id in extended.pieces] == ["xq", "xqj"]
    ids = {text: old.convert_tokens_to_ids(text) for text in "xqj"}
    assert list(extended.pieces.values()) == [[ids["x"], ids["q"]], [ids["x"], ids["q"], ids["j"]]]
    assert list(extended.pieces) == [len(old), len(old) + 1]


def test_a_korean_text_has_fewer_tokens_and_decodes_to_itself(old, tmp_path):
    extended = extend_tokenizer(old, KOREAN, num_tokens=20).tokenizer
    assert tokens_per_character(extended, KOREAN) < 0.5 * tokens_per_character(old, KOREAN)
    extended.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*KOREAN, *OLD):
        assert extended.decode(extended(text)["input_ids"]) == text == read.decode(read(text)["input_ids"])
        assert extended(text)["input_ids"] == read(text)["input_ids"]


def test_old_tokens_keep_their_ids_and_texts_without_new_tokens_are_cut_as_before(old):
    extended = extend_tokenizer(old, KOREAN, num_tokens=20).tokenizer
    before, after = old.get_vocab(), extended.get_vocab()
    assert before.items() <= after.items() and len(after) == len(before) + 20
    assert extended.special_tokens_map == old.special_tokens_map
    for text in (OLD[0], OLD[2]):
        assert extended(text)["input_ids"] == old(text)["input_ids"]


def test_added_tokens_behind_the_vocabulary_keep_their_ids(tmp_path):
    """As in Qwen, whose special tokens come after the tokens of its merges."""
    old = byte_tokenizer(special_tokens=[])
    old.add_special_tokens({"extra_special_tokens": ["<|one|>", "<|two|>"]})
    ids = old.convert_tokens_to_ids(["<|one|>", "<|two|>"])
    extend_tokenizer(old, KOREAN, num_tokens=5).tokenizer.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.convert_tokens_to_ids(["<|one|>", "<|two|>"]) == ids
    assert len(read) == max(ids) + 6 and read("<|two|>")["input_ids"] == [ids[1]]


def test_a_special_token_in_the_corpus_is_part_of_no_new_token(old):
    extended = extend_tokenizer(old, ["xq<|im_start|>xq<|im_start|>"] * 3, num_tokens=1)
    assert extended.tokenizer.convert_ids_to_tokens(list(extended.pieces)) == ["xq"]
    with pytest.raises(ConfigError, match="has repeated pieces for 1 new tokens, expected num_new_tokens=2"):
        extend_tokenizer(old, ["xq<|im_start|>xq<|im_start|>"] * 3, num_tokens=2)


def test_a_pair_that_joins_to_an_old_token_gets_no_second_one(old):
    """`xqj` is a token that only `x` + `qj` reach, but `xq` is joined first: the corpus has `xq` + `j` as a pair."""
    rules = json.loads(backend_json(old))
    size = len(old)
    rules["model"]["vocab"] |= {"xq": size, "qj": size + 1, "xqj": size + 2}
    rules["model"]["merges"] += [["x", "q"], ["q", "j"], ["x", "qj"]]
    odd = with_rules(old, rules)
    assert odd.tokenize("xqj") == ["xq", "j"]
    extended = extend_tokenizer(odd, ["xqjw", "xqjw", "xqj"], num_tokens=1)
    assert extended.tokenizer.convert_ids_to_tokens(list(extended.pieces)) == ["xqjw"]
    assert extended.tokenizer("xqj xqjw")["input_ids"][0] == size + 2  # the pair now gives the old token
    assert len(set(extended.tokenizer.get_vocab().values())) == len(extended.tokenizer) == size + 4
