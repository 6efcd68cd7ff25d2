"""pretrain: blocks of documents, attention within documents, and packing."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.training.training_runs import data
from tests.stage_runs import run_here


def test_pretraining_from_random_weights_lowers_the_loss(rows, tmp_path):
    architecture = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    record = run_here(
        "pretrain",
        tmp_path / "pretrain",
        train_data=[rows / "documents.jsonl"],
        architecture=architecture,
        vocab_size=300,
        special_tokens=["<|im_start|>"],
        block_size=16,
        validation_share=0.2,
        max_steps=20,
        muon_learning_rate=0.02,
        learning_rate=1e-2,
    )
    assert record.metrics["eval_loss"] < 0.7 * record.metrics["eval_loss_at_step_0"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pretrain" / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pretrain" / "model")
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 300
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer("<|im_start|>")["input_ids"]) == 1


def test_pretraining_continues_from_a_model(tiny_model, rows, tmp_path):
    record = run_here(
        "pretrain",
        tmp_path / "pretrain",
        train_data=[rows / "documents.jsonl"],
        model_name_or_path=tiny_model,
        block_size=16,
        validation_share=0.2,
    )
    assert record.metrics["eval_loss"] < record.metrics["eval_loss_at_step_0"]
    kept = AutoTokenizer.from_pretrained(tmp_path / "pretrain" / "model")
    assert kept.get_vocab() == AutoTokenizer.from_pretrained(tiny_model).get_vocab()


def test_blocks_are_one_stream_with_end_tokens(tokenizer):
    from stages.pretrain import blocks

    texts = ["Rome.", "It is a large city."]
    stream = [id for text in texts for id in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    made = blocks(texts, tokenizer, size=4)
    assert [row.input_ids for row in made] == [stream[i : i + 4] for i in range(0, len(stream) // 4 * 4, 4)]
    assert all(row.labels == row.input_ids for row in made)
    (only,) = blocks(texts, tokenizer, size=len(stream) + 1)
    assert only.input_ids == only.labels == stream


def test_pretraining_keeps_attention_within_documents_by_default(tiny_model, rows, tmp_path):
    losses = {}
    for mask in (True, False):
        record = run_here(
            "pretrain",
            tmp_path / str(mask),
            train_data=[rows / "documents.jsonl"],
            model_name_or_path=tiny_model,
            block_size=32,
            validation_share=0.2,
            mask_documents=mask,
            learning_rate=3e-3,
            max_steps=4,
        )
        losses[mask] = (record.metrics["eval_loss_at_step_0"], record.metrics["eval_loss"])
    assert losses[True][0] != losses[False][0] and losses[True][1] < losses[True][0]


def test_packing_is_used_in_training_and_not_in_evaluation(tiny_model, rows, tmp_path):
    keys = {"model_name_or_path": tiny_model, "global_batch_size": 2, "max_steps": 2, **data(rows, "sft")}
    plain = run_here("sft", tmp_path / "plain", **keys)
    packed = run_here("sft", tmp_path / "packed", packing=True, max_length=256, **keys)
    assert packed.metrics["eval_loss"] < packed.metrics["eval_loss_at_step_0"]
    assert packed.metrics["eval_loss_at_step_0"] == pytest.approx(plain.metrics["eval_loss_at_step_0"], abs=1e-6)


@pytest.mark.parametrize(
    ("keys", "rope", "positions"),
    [
        ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}, 600),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 512},
            600,
        ),
        # The limit of linear scaling is that before scaling, which has 2 x 512 tokens already.
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 2e4},
            {"rope_type": "linear", "rope_theta": 2e4, "factor": 2.0},
            512,
        ),
    ],
)
def test_a_model_is_pretrained_further_with_other_rotary_positions(keys, rope, positions, tiny_model, rows, tmp_path):
    """Rows of 600 tokens for a model of 512 positions; the documents in them stay masked from each other."""
    common = {
        "train_data": [rows / "documents.jsonl"],
        "model_name_or_path": tiny_model,
        "block_size": 600,
        "validation_share": 0.5,
        "global_batch_size": 1,
        "max_steps": 1,
    }
    record = run_here("pretrain", tmp_path / "longer", **common, **keys)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "longer" / "model").config
    assert config.rope_parameters == rope and config.max_position_embeddings == positions
    assert {name: record.keys[name] for name in keys} == keys
    if "factor" in rope:
        assert record.metrics["eval_loss_at_step_0"] != loss_with(tiny_model, common, tmp_path)


def loss_with(model, common, folder) -> float:
    """The loss of the model's own positions at step 0."""
    record = run_here("pretrain", folder / "own", **common)
    assert "rope_theta" not in record.keys and "rope_scaling" not in record.keys
    return float(record.metrics["eval_loss_at_step_0"])
