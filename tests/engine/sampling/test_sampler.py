"""Sampling: the same answers for any batch size, order and number of processes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.models.loading import load_causal
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer, Policy, SampleRequest, SamplingSettings
from engine.sampling.transformers_engine import NoiseProcessor, TransformersEngine, noise
from engine.tokens.template import encode_prompt
from tests.toy_prompts import PROMPTS

# -- choosing a token -------------------------------------------------------------------------------------------------


def test_generate_gets_the_token_that_the_noise_of_its_position_chooses():
    scores = torch.log(torch.tensor([[0.1, 0.5, 0.4]]))
    # Three prompt tokens and one generated already: the noise of position 1 counts.
    sampler = NoiseProcessor(torch.tensor([[0.05, 0.61]]), torch.ones(1), num_prompt_tokens=3, top_p=1.0)
    assert sampler(torch.zeros(1, 4, dtype=torch.long), scores)[0].tolist() == [-math.inf, -math.inf, 0.0]
    assert sampler(torch.zeros(1, 3, dtype=torch.long), scores)[0].tolist() == [0.0, -math.inf, -math.inf]


def test_noise_is_uniform_and_depends_only_on_seed_prompt_and_k():
    first = noise("7/rs", "abc", 0, 4000)
    assert np.array_equal(first[:10], noise("7/rs", "abc", 0, 10))
    for other in (noise("8/rs", "abc", 0, 4000), noise("7/rs", "abd", 0, 4000), noise("7/rs", "abc", 1, 4000)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.06
    assert first.min() >= 0 and first.max() < 1
    assert abs(first.mean() - 0.5) < 0.02 and abs(first.std() - 12**-0.5) < 0.02


# -- answers ----------------------------------------------------------------------------------------------------------


def engine(folder: Path, model: Path, **keys: Any) -> TransformersEngine:
    folder.mkdir(exist_ok=True)
    arguments = GenerationArguments(**{"seed": 5, "max_new_tokens": 12, "use_cpu": True, "dtype": "float32", **keys})
    stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
    settings = SamplingSettings.of(arguments, purpose="p")
    return TransformersEngine.load(stage, "answers", Policy(str(model), "tiny"), settings)


def draw(folder: Path, model: Path, requests: list[SampleRequest], **keys: Any) -> list[Answer]:
    return engine(folder, model, **keys).sample(requests)


REQUESTS = [SampleRequest(prompt, k) for prompt in PROMPTS for k in range(3)]


@pytest.fixture(scope="module")
def answers(tiny_model, tmp_path_factory) -> list[Answer]:
    return draw(tmp_path_factory.mktemp("answers") / "all", tiny_model, REQUESTS, generation_batch_size=32)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_do_not_depend_on_the_batch_size(batch_size, answers, tiny_model, tmp_path):
    assert draw(tmp_path / "other", tiny_model, REQUESTS, generation_batch_size=batch_size) == answers


def test_answers_do_not_depend_on_order_or_batch(answers, tiny_model, tmp_path):
    chosen = [20, 3, 11, 4]
    other = draw(tmp_path / "other", tiny_model, [REQUESTS[index] for index in chosen], generation_batch_size=3)
    assert other == [answers[index] for index in chosen]
    assert draw(tmp_path / "seed", tiny_model, REQUESTS[:4], seed=6) != answers[:4]


def test_each_request_has_its_own_answer_with_its_end_token(answers, tokenizer, tiny_model, tmp_path):
    assert len(answers) == len(REQUESTS)
    assert len({answer.text for answer in answers}) > 15
    ended = draw(tmp_path / "long", tiny_model, REQUESTS, max_new_tokens=400)
    assert any(answer.ended for answer in ended), "some answer must end by itself for this to show something"
    assert [(answer.prompt, answer.k) for answer in answers] == [(asked.prompt, asked.k) for asked in REQUESTS]
    assert {answer.policy for answer in answers} == {"tiny"}
    for answer in answers + ended:
        assert answer.ended == (answer.ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in answer.ids[:-1]
        assert answer.text == tokenizer.decode(answer.ids, skip_special_tokens=True)
    assert all(len(answer.ids) == 12 for answer in answers if not answer.ended)


def test_temperature_0_is_the_most_probable_continuation(tokenizer, tiny_model, tmp_path):
    greedy = draw(tmp_path / "greedy", tiny_model, REQUESTS[:4], temperature=0.0, max_new_tokens=5)
    assert greedy[0].ids == greedy[1].ids == greedy[2].ids, "without noise the answers of one prompt are the same"
    model = load_causal(str(tiny_model), dtype="float32").eval()
    ids = encode_prompt(tokenizer, PROMPTS[0].prompt)
    for token in greedy[0].ids:
        with torch.no_grad():
            assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids = [*ids, token]


def test_a_sampled_answer_follows_its_noise(answers, tokenizer, tiny_model):
    """One answer worked out token by token, from the model's plain probabilities and the noise of (seed, prompt, k)."""
    model = load_causal(str(tiny_model), dtype="float32").eval()
    ids = encode_prompt(tokenizer, PROMPTS[2].prompt)
    numbers = noise("5/p", PROMPTS[2].prompt_id, 1, 12)
    for token, number in zip(answers[7].ids, numbers, strict=False):
        with torch.no_grad():
            cumulative = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1).cumsum(-1)
        assert token == int((cumulative <= number).sum())
        ids = [*ids, token]


def test_finished_batches_are_used_by_the_next_attempt(answers, tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "again"
    draw(folder, tiny_model, REQUESTS[:3])
    again = engine(folder, tiny_model)
    monkeypatch.setattr(again.model, "forward", None)  # to call it would be an error
    assert again.sample(REQUESTS[:3]) == answers[:3]
