"""The folder that prepare_base writes: pad token, template and embeddings."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from engine.tokens.template import CHATML, encode_dialog, render
from stages.prepare_base import prepare_tokenizer
from tests.engine.tokens.golden_templates import GOLDEN, TURNS
from tests.stage_runs import run_here, weights_of


@pytest.fixture(scope="module")
def prepared(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "chatml"
    record = run_here("prepare_base", folder, model_name_or_path=tiny_base, chat_template="chatml")
    assert record.metrics["new_tokens"] == 2  # <|im_start|>, <|im_end|>
    return folder / "model"


def test_prepare_base_sets_pad_template_and_embeddings(tiny_base, prepared):
    before = AutoTokenizer.from_pretrained(tiny_base)
    assert before.pad_token_id == before.eos_token_id and not before.chat_template
    after = AutoTokenizer.from_pretrained(prepared)
    assert (after.eos_token, after.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert after.chat_template == CHATML
    model = AutoModelForCausalLM.from_pretrained(prepared)
    assert model.config.eos_token_id == after.eos_token_id and model.config.pad_token_id == after.pad_token_id
    # Generation stops at the end of a turn and at the base's own end of text.
    assert model.generation_config.eos_token_id == [after.eos_token_id, before.eos_token_id]
    ids = encode_dialog(after, TURNS).ids
    assert max(ids) < model.get_input_embeddings().weight.shape[0] == len(after)


def test_new_embedding_rows_are_the_mean_and_old_ones_stay(tiny_base, prepared):
    old, new = weights_of(tiny_base), weights_of(prepared)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = len(old[name])
        assert torch.equal(new[name][:rows], old[name])
        assert len(new[name]) == rows + 2
        torch.testing.assert_close(new[name][rows:], old[name].mean(0).expand(2, -1))
    layer = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(new[layer], old[layer])


def test_a_pad_token_is_added_if_a_turn_ends_in_the_old_one(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    prepare_tokenizer(tokenizer, GOLDEN["zephyr"][0])
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_models_own_template_is_kept_or_replaced(tiny_model, tmp_path):
    record = run_here("prepare_base", tmp_path / "kept", model_name_or_path=tiny_model)
    assert record.metrics["new_tokens"] == 0
    kept = AutoTokenizer.from_pretrained(tmp_path / "kept" / "model")
    assert kept.chat_template == CHATML and kept.eos_token == "<|im_end|>"

    (tmp_path / "zephyr.jinja").write_text(GOLDEN["zephyr"][0].replace("eos_token", "'<|im_end|>'"))
    run_here("prepare_base", tmp_path / "new", model_name_or_path=tiny_model, chat_template=tmp_path / "zephyr.jinja")
    replaced = AutoTokenizer.from_pretrained(tmp_path / "new" / "model")
    assert render(replaced, TURNS[:2]) == ("<|user|>\nCapital of France?<|im_end|>\n<|assistant|>\nParis.<|im_end|>\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template; set prepare_base.chat_template"),
        ("nowhere.jinja", "chat_template='nowhere.jinja' is neither a file nor one of chatml"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "closes an assistant turn without a special token"),
        (
            "{% for m in messages %}{{ m['role'] }}{{ m['content'] }}<|endoftext|>{{ loop.length }}{% endfor %}",
            "renders turn 2 in another way than it asks for it: the generation prompt ends with 'userHi<|endoftext|>1'",
        ),
    ],
)
def test_prepare_base_refuses_a_template_that_cannot_be_trained_on(tiny_base, template, message):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    with pytest.raises(ConfigError) as error:
        prepare_tokenizer(tokenizer, template)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("multiple, num_new_rows", [(64, None), (1000, None), (1, 2)])
def test_the_vocabulary_is_padded_to_a_multiple(multiple, num_new_rows, tiny_base, tmp_path):
    keys = {"model_name_or_path": tiny_base, "chat_template": "chatml", "pad_to_multiple_of": multiple}
    record = run_here("prepare_base", tmp_path / "padded", **keys)
    before, after = weights_of(tiny_base), weights_of(tmp_path / "padded" / "model")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = before[name], after[name]
        assert len(new) % multiple == 0 and 0 <= len(new) - len(old) - 2 < multiple
        assert torch.equal(new[: len(old)], old)
        torch.testing.assert_close(new[len(old) :], old.mean(0).expand(len(new) - len(old), -1))
        assert num_new_rows is None or len(new) == len(old) + num_new_rows
    assert record.metrics["new_tokens"] == 2 and record.keys["pad_to_multiple_of"] == multiple
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "padded" / "model")
    assert model.config.vocab_size == len(after["lm_head.weight"])


def test_a_vocabulary_that_is_not_padded_has_the_identity_of_before(prepared):
    record = Artifact.read(prepared.parent)
    assert record is not None and "pad_to_multiple_of" not in record.keys


def test_tied_embeddings_stay_tied_when_they_are_padded(tied_model, tmp_path):
    run_here("prepare_base", tmp_path / "padded", model_name_or_path=tied_model, pad_to_multiple_of=100)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "padded" / "model")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(model.get_input_embeddings().weight) % 100 == 0


KOREAN = ["안녕하세요 여행은 언제나 좋죠", "여행은 좋아요 안녕", "언제나 안녕하세요"] * 5


@pytest.mark.parametrize("kind", ["tiny_base", "tied_model"])
def test_new_tokens_start_as_the_mean_of_their_pieces(kind, request, tmp_path):
    base = request.getfixturevalue(kind)
    (tmp_path / "ko.txt").write_text("\n".join(KOREAN))
    keys = {"model_name_or_path": base, "chat_template": "chatml"}
    record = run_here(
        "prepare_base", tmp_path / "made", extend_tokenizer=[tmp_path / "ko.txt"], num_new_tokens=20, **keys
    )
    before, after = weights_of(base), weights_of(tmp_path / "made" / "model")
    old, new = (AutoTokenizer.from_pretrained(path) for path in (base, tmp_path / "made" / "model"))
    number = len(old)
    for name in [name for name in before if "embed_tokens" in name or "lm_head" in name]:
        assert torch.equal(after[name][:number], before[name])
        for token in range(number, number + 20):
            text = new.backend_tokenizer.decoder.decode([new.convert_ids_to_tokens(token)])
            if "\ufffd" not in text:
                ids = old(text, add_special_tokens=False)["input_ids"]
                torch.testing.assert_close(after[name][token], before[name][ids].mean(0))
    metrics = record.metrics
    assert metrics["new_tokens"] == 20 + (2 if kind == "tiny_base" else 0)
    assert metrics["tokens_per_character"] < 0.6 * metrics["tokens_per_character_before"]
    assert {"loss_per_byte_before", "loss_per_byte"} <= metrics.keys()
    assert "20 tokens learnt from extend_tokenizer" in (tmp_path / "made" / "log.txt").read_text()
    assert record.keys["num_new_tokens"] == 20


def test_a_base_that_is_not_extended_has_the_identity_of_before(prepared):
    record = Artifact.read(prepared.parent)
    assert record is not None and "num_new_tokens" not in record.keys and "extend_tokenizer" not in record.inputs
