"""LoRA leaves a merged plain model; tied weights stay tied."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from engine.models import loading
from engine.models.lora import adapters_of
from engine.training import method, run
from tests.engine.training.training_runs import STAGES, data
from tests.stage_runs import metrics_of, run_here, weights_of


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("stage", STAGES)
def test_lora_leaves_a_merged_plain_model(stage, tiny_model, rows, tmp_path):
    from peft import PeftModel

    folder = tmp_path / stage
    record = run_here(
        stage,
        folder,
        model_name_or_path=tiny_model,
        use_peft=True,
        learning_rate=1e-2,
        keep_checkpoints=True,
        **data(rows, stage),
    )
    best = record.metrics["best_step"]
    assert best != 0
    adapter, plain = folder / "checkpoints" / f"best-{best}", folder / "model"
    assert (adapter / "adapter_config.json").exists()
    assert not list(plain.glob("adapter*")) and (plain / "tokenizer.json").exists()
    if stage == "reward_model":
        base, merged = loading.load_reward(str(tiny_model)), AutoModelForSequenceClassification.from_pretrained(plain)
        assert merged.config.num_labels == 1 and merged.config.pad_token_id is not None
        assert "score.weight" in weights_of(plain)
    else:
        base, merged = loading.load_causal(str(tiny_model)), AutoModelForCausalLM.from_pretrained(plain)
    start = logits(base).clone()
    torch.testing.assert_close(logits(merged), logits(PeftModel.from_pretrained(base, adapter)), atol=1e-5, rtol=1e-5)
    assert float((logits(merged) - start).abs().max()) > 1e-3
    assert record.metrics["eval_loss"] < record.metrics["eval_loss_at_step_0"]
    if stage == "dpo":  # the reference is the model without its adapters: at the start no pair has a margin
        assert metrics_of(folder)[0, "eval_rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [(["q_proj"], {"q_proj"}), (["self_attn.v_proj"], {"v_proj"}), ([".*(q|k)_proj"], {"q_proj", "k_proj"})],
)
def test_a_list_of_one_name_is_of_all_matrices_with_it(targets, adapted, tiny_model):
    """As a list of two names; an expression is one of the whole path."""
    policy = AutoModelForCausalLM.from_pretrained(tiny_model)
    keys = ModelConfig(model_name_or_path=str(tiny_model), use_peft=True, lora_target_modules=targets)
    config = adapters_of(keys, policy, AutoTokenizer.from_pretrained(tiny_model)).config
    names = [name for name, _ in get_peft_model(policy, config).named_parameters() if ".lora_A." in name]
    assert {name.split(".")[-4] for name in names} == adapted
    assert len(names) == len(adapted) * policy.config.num_hidden_layers


def test_tied_weights_are_loaded_as_they_were_trained(tied_model, rows, tmp_path, monkeypatch):
    trained = {}
    finish = run.check_weights
    trainers = []
    wrapped = run.train_and_save

    def keep(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        trainers.append(trainer)
        return wrapped(trainer, *args, **kwargs)

    for stage in ("sft", "reward_model"):
        monkeypatch.setattr(method, "train_and_save", keep)
        record = run_here(stage, tmp_path / stage, model_name_or_path=tied_model, **data(rows, stage))
        assert record.metrics["best_step"] == 3  # the trainer's model at its end is the saved one
        trained[stage] = logits(trainers[-1].model)
        finish(tmp_path / stage / "model")
    sft = AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "model")
    assert sft.get_input_embeddings().weight is sft.get_output_embeddings().weight
    torch.testing.assert_close(logits(sft), trained["sft"], atol=1e-6, rtol=0)
    scores = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model" / "model")
    torch.testing.assert_close(logits(scores), trained["reward_model"], atol=1e-6, rtol=0)
