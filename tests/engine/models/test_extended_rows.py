"""The loss per byte of a model, by hand and beside transformers' own loss."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.models.extended_rows import initialise_rows, loss_per_byte


def test_a_uniform_model_needs_the_same_for_every_token(tiny_model, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    text = "Päris"
    expected = len(tokenizer(text)["input_ids"]) * math.log(len(tokenizer)) / len(text.encode())
    assert loss_per_byte(model, tokenizer, [text]) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_that_of_transformers_over_all_texts(tiny_model, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    texts, total = ["Paris is large.", "안녕"], 0.0
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        total += float(model(input_ids=ids, labels=ids).loss.detach()) * (ids.shape[1] - 1)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert loss_per_byte(model, tokenizer, texts) == pytest.approx(total / num_bytes, rel=1e-5)


def test_tied_rows_are_set_once(tied_model):
    model = AutoModelForCausalLM.from_pretrained(tied_model)
    rows = model.get_input_embeddings().weight.detach().clone()
    initialise_rows(model, {10: [20, 21, 21]})
    torch.testing.assert_close(model.lm_head.weight[10], (rows[20] + 2 * rows[21]) / 3)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight[11:], rows[11:])
