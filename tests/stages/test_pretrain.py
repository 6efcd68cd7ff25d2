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
