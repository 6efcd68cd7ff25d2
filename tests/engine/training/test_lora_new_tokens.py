"""LoRA on a base without the chat template's tokens trains their rows; what is tied stays tied."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.models.loading import load_causal, load_reward, read_tokenizer
from engine.models.new_tokens import names_of_embeddings, template_tokens, untrained_tokens
from tests.engine.training.training_runs import STAGES, data
from tests.stage_runs import run_here, weights_of
from tests.toy_models import byte_tokenizer, tiny_llama

TURN_TOKENS = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def prepared(request, tmp_path_factory) -> Path:
    """A base that got ChatML's tokens from prepare_base."""
    folder = tmp_path_factory.mktemp("new-tokens")
    base = tiny_llama(byte_tokenizer(special_tokens=[]), folder / "base", tie_word_embeddings=request.param)
    run_here("prepare_base", folder / "prepared", model_name_or_path=base, chat_template="chatml")
    return folder / "prepared" / "model"


def rows_of(folder: Path, tokens: list[int]) -> dict[str, torch.Tensor]:
    """The rows of the tokens in the embeddings and in the head, if the model has a separate one."""
    return {name: weight[tokens] for name, weight in weights_of(folder).items() if "embed" in name or "lm_head" in name}


def ids_of(folder: Path) -> list[int]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return tokenizer.convert_tokens_to_ids(TURN_TOKENS)


@pytest.mark.parametrize("stage", STAGES)
def test_the_rows_of_new_tokens_are_trained_and_saved(stage, prepared, rows, tmp_path):
    tokens = ids_of(prepared)
    keys = data(rows, stage) | {"use_peft": True, "learning_rate": 1e-2}
    record = run_here(stage, tmp_path / stage, model_name_or_path=prepared, **keys)
    assert record.metrics["best_step"]
    before, after = rows_of(prepared, tokens), rows_of(tmp_path / stage / "model", tokens)
    assert before["model.embed_tokens.weight"][0].equal(before["model.embed_tokens.weight"][1])
    if stage == "reward_model":  # which has no head over the vocabulary
        before.pop("lm_head.weight", None)
    assert before.keys() == after.keys()
    for name, trained in after.items():
        assert not trained[0].equal(trained[1]), name
        assert float((trained - before[name]).abs().min(dim=1).values.max()) > 0, name
    log = (tmp_path / stage / "log.txt").read_text()
    assert "new to the base model: <|im_start|>, <|im_end|>" in log
    everything, first = weights_of(tmp_path / stage / "model"), weights_of(prepared)
    others = [row for row in range(len(first["model.embed_tokens.weight"])) if row not in tokens]
    name = "model.embed_tokens.weight"
    assert everything[name][others].equal(first[name][others]), "all other rows are as they were"
    if stage != "reward_model":
        saved: Any = AutoModelForCausalLM.from_pretrained(tmp_path / stage / "model")
        source: Any = AutoModelForCausalLM.from_pretrained(prepared)
        assert saved.config.tie_word_embeddings == source.config.tie_word_embeddings
        is_tied = saved.get_input_embeddings().weight is saved.get_output_embeddings().weight
        assert is_tied == source.config.tie_word_embeddings


def test_a_step_later_they_are_no_longer_new(prepared, rows, tmp_path):
    keys = data(rows, "sft") | {"use_peft": True, "learning_rate": 1e-2}
    run_here("sft", tmp_path / "sft", model_name_or_path=prepared, **keys)
    run_here("dpo", tmp_path / "dpo", model_name_or_path=tmp_path / "sft" / "model", use_peft=True, **data(rows, "dpo"))
    assert "new to the base model" not in (tmp_path / "dpo" / "log.txt").read_text()
    tokens = ids_of(prepared)
    before, after = (rows_of(tmp_path / stage / "model", tokens) for stage in ("sft", "dpo"))
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward_model"])
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_a_tied_model_stays_tied(stage, module, tied_model, rows, tmp_path):
    if (stage, module) == ("reward_model", "lm_head"):
        pytest.skip("a reward model has no head over the vocabulary")
    keys = data(rows, stage) | {"use_peft": True, "learning_rate": 1e-2, "lora_modules_to_save": [module]}
    record = run_here(stage, tmp_path / stage, model_name_or_path=tied_model, **keys)
    assert record.metrics["best_step"]
    saved, before = weights_of(tmp_path / stage / "model"), weights_of(tied_model)
    assert "lm_head.weight" not in saved
    name = "model.embed_tokens.weight"
    assert not saved[name].equal(before[name]), "it was trained"
    if stage != "reward_model":
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / stage / "model")
        assert model.config.tie_word_embeddings
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_only_tokens_that_the_template_writes_and_nothing_has_trained_are_new(prepared, tiny_model):
    tokens = ids_of(prepared)
    assert untrained_tokens(load_causal(str(prepared)), read_tokenizer(str(prepared))) == tokens
    assert untrained_tokens(load_reward(str(prepared)), read_tokenizer(str(prepared))) == tokens
    assert untrained_tokens(load_causal(str(tiny_model)), read_tokenizer(str(tiny_model))) == []


def test_a_single_new_token_is_found_by_its_row_which_is_the_mean_of_the_others(tiny_model):
    model, tokenizer = load_causal(str(tiny_model)), read_tokenizer(str(tiny_model))
    weight: Any = model.get_input_embeddings().weight
    end = max(template_tokens(tokenizer))
    with torch.no_grad():
        weight[end] = weight[:end].mean(0).bfloat16().float()
    assert untrained_tokens(model, tokenizer) == [end]


def test_the_matrices_with_a_row_for_each_token_are_found_in_any_architecture():
    from tests.engine.packing.test_shared_rows import make

    assert names_of_embeddings(make("llama")) == ["embed_tokens", "lm_head"]
    assert names_of_embeddings(make("gpt2")) == ["wte"]  # tied
