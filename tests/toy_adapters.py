"""Random adapters on toy models, saved as a stage with `at_end: keep` saves them."""

import shutil
from pathlib import Path
from typing import Any

import torch
from trl import ModelConfig

from engine.models.loading import load_causal
from engine.models.lora import describe_adapter


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def adapted(base: Path, folder: Path, *, quantization: Any = None, **form: Any) -> Any:
    """PEFT's model with a random adapter, saved in `folder` as a stage does."""
    from peft import LoraConfig, get_peft_model

    options = {"quantization_config": quantization} if quantization else {}
    lora = LoraConfig(**({"r": 4, "task_type": "CAUSAL_LM"} | form))
    model = get_peft_model(load_causal(str(base), dtype="float32", **options), lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    keys = {"load_in_4bit": True, "bnb_4bit_quant_type": quantization.bnb_4bit_quant_type} if quantization else {}
    nested = bool(quantization and quantization.bnb_4bit_use_double_quant)
    config = ModelConfig(
        model_name_or_path=str(base), dtype="float32", use_peft=True, use_bnb_nested_quant=nested, **keys
    )
    for path in (*Path(base).glob("*token*"), *Path(base).glob("*.jinja")):
        shutil.copyfile(path, folder / path.name)
    describe_adapter(model, config, folder, continued=None)
    return model
