"""Embeddings: independent of the batch, and those of the model's last hidden states."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from engine.models import embedding


def test_an_embedding_is_the_mean_of_the_last_hidden_states_in_any_batch(tiny_base, monkeypatch):
    texts = ["What is the capital of Peru?", "Lima.", "A much longer text, which has other neighbours in a batch."]
    together = embedding.embed(str(tiny_base), texts, torch.device("cpu"))
    monkeypatch.setattr(embedding, "TOKENS_OF_BATCH", 1)
    alone = embedding.embed(str(tiny_base), texts, torch.device("cpu"))
    np.testing.assert_allclose(together.astype(float), alone.astype(float), atol=2e-3)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_base), AutoModel.from_pretrained(tiny_base, dtype="float32")
    with torch.no_grad():
        mean = model(**tokenizer(texts[1], return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    assert (mean / mean.norm()).numpy() == pytest.approx(alone[1].astype(float), abs=2e-3)
    assert alone.dtype == np.float16
