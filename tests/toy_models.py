"""Tiny random models and their tokenizers."""

import json
import shutil
from pathlib import Path
from typing import Any

from data_schemas.files import read_json, write_atomically
from tests.toy_rows import conversation


def byte_tokenizer(*, special_tokens: list[str], vocab_size: int = 300) -> Any:
    """A byte-level BPE trained on the rows' words; end `<|endoftext|>`, pad `<|pad|>`, no template."""
    from stages.pretrain import train_tokenizer

    texts = [message["content"] for number in range(12) for message in conversation(number)["messages"]]
    return train_tokenizer(texts, vocab_size=vocab_size, special_tokens=special_tokens)


def tiny_llama(tokenizer: Any, folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """A random Llama of 2 layers with its tokenizer, saved."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # with matrices of 32, threads only wait for each other on a busy machine
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            initializer_range=0.1,  # logits that differ clearly: with the usual 0.02 all answers would be noise
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sizes | config,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed_copy(model: Path, folder: Path, *, pad: int | None, **entries: Any) -> Path:
    """A copy with these entries of tokenizer_config.json, None removes one, and the pad token's id in config.json."""
    shutil.copytree(model, folder)
    for name, own in (("tokenizer_config.json", entries), ("config.json", {"pad_token_id": pad})):
        content = (read_json(folder / name) or {}) | own
        write_atomically(folder / name, json.dumps({key: value for key, value in content.items() if value is not None}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder
