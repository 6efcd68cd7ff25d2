"""A real vLLM draws answers: the same again, the most probable, and one line for a model that it does not support."""

from pathlib import Path
from typing import Any

import pytest

from data_schemas.errors import ConfigError
from engine.models.loading import load_causal, load_tokenizer
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer, Policy, SamplingSettings
from engine.sampling.sampler import sample_in_turn
from engine.tokens.template import encode_prompt
from tests.engine.sampling.real_vllm import KEYS, needs_vllm
from tests.engine.sampling.vllm_prompts import PROMPTS
from tests.toy_models import changed_copy, tiny_llama


def draw_for_real(folder: Path, model: Path, **keys: Any) -> list[list[Answer]]:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"seed": 5, "max_new_tokens": 24, "generation_batch_size": 6, **KEYS, **keys}
    stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
    requested = [(prompt, None) for prompt in PROMPTS]
    settings = SamplingSettings.of(GenerationArguments(**given), purpose="p")
    return sample_in_turn(stage, [Policy(str(model), "policy")], requested, settings, num_answers=3)


@pytest.fixture(scope="module")
def model_for_vllm(tokenizer, tmp_path_factory) -> Path:
    """Heads of size 32: vLLM's attention does not support 16 on a CPU without AVX-512."""
    return tiny_llama(tokenizer, tmp_path_factory.mktemp("vllm") / "model", hidden_size=64)


@needs_vllm
def test_a_real_vllm_gives_the_same_bits_again_and_after_a_restart(model_for_vllm, tokenizer, tmp_path):
    answers = draw_for_real(tmp_path / "a" / "a", model_for_vllm)
    assert len({answer.text for own in answers for answer in own}) > 10
    for answer in (answer for own in answers for answer in own):
        assert answer.ended == (answer.ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in answer.ids[:-1]
        assert answer.ended or len(answer.ids) == 24
    first = tmp_path / "b" / "b"
    assert draw_for_real(first, model_for_vllm) == answers
    (journal,) = (first / "checkpoints").glob("answers-0-*")
    for number in (1, 2):
        (journal / f"{number}.json").unlink()
    assert draw_for_real(first, model_for_vllm) == answers


@needs_vllm
def test_a_real_vllm_gives_the_same_answers_where_the_pad_token_is_the_end_token(model_for_vllm, tokenizer, tmp_path):
    end, end_id = tokenizer.eos_token, tokenizer.eos_token_id
    unchanged = changed_copy(model_for_vllm, tmp_path / "hub", pad=end_id, pad_token=end)
    answers = draw_for_real(tmp_path / "a", unchanged, max_new_tokens=60)
    assert answers == draw_for_real(tmp_path / "b", model_for_vllm, max_new_tokens=60)
    assert {answer.ended for own in answers for answer in own} == {True, False}


@needs_vllm
def test_a_real_vllm_takes_the_most_probable_tokens_at_temperature_0(model_for_vllm, tmp_path):
    import torch

    answers = draw_for_real(tmp_path, model_for_vllm, temperature=0.0, dtype="float32")
    model, tokenizer = load_causal(str(model_for_vllm), dtype="float32").eval(), load_tokenizer(str(model_for_vllm))
    for prompt, own in zip(PROMPTS, answers, strict=True):
        assert own[0].ids == own[1].ids == own[2].ids
        ids, answer = encode_prompt(tokenizer, prompt.prompt), own[0].ids
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        chosen_T = logits_TV.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert float((logits_TV.max(dim=1).values - chosen_T).max()) < 1e-3


@needs_vllm
def test_a_model_that_a_real_vllm_does_not_support_is_one_line(tiny_model, tmp_path):
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigError) as error:
        draw_for_real(tmp_path / "out", tmp_path)
    assert str(error.value).startswith(f"vLLM does not take {tmp_path} (") and "\n" not in str(error.value)
