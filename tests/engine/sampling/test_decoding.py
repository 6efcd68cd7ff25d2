"""Continuous batching gives the answers of generate(), whatever else is in the batch."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data_schemas.rows import Message, Prompt
from engine.runtime.arguments import GenerationArguments
from engine.sampling import decoding, page_pool
from engine.sampling.answers import SampleRequest, SamplingSettings
from engine.sampling.decoding import DecodingRequest, SamplingLimits, generate_answers, supports_shared_prompts
from engine.sampling.prompt_cache import PromptCache
from engine.sampling.token_choice import choose
from engine.sampling.transformers_engine import GroupGenerator, PromptRequests, noise

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
KINDS = ("llama", "qwen2", "qwen3", "gemma", "gemma3_text", "mistral", "gpt2")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22], [5, 6, 30], [40], list(range(50, 67))]
END_IDS = {1, *range(100, 130)}  # a tenth of the vocabulary: answers of 1 to 12 tokens


def make(kind: str, **keys: Any) -> Any:
    torch.manual_seed(1)
    sizes = dict(SIZES)
    if kind == "gpt2":
        sizes = {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "vocab_size": 300,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "initializer_range": 0.3,
        }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | keys)).eval()


def requests(num_answers: int = 4, temperature: float = 1.0, num_prompts: int = len(PROMPTS)) -> list[DecodingRequest]:
    return [
        DecodingRequest(number, temperature, noise("s", str(number), k, 12))
        for number in range(num_prompts)
        for k in range(num_answers)
    ]


def generate(
    model: Any, asked: list[DecodingRequest] | None = None, *, num_slots: int = 7, top_p: float = 1.0
) -> list[list[int]]:
    limits = SamplingLimits(max_new_tokens=12, end_ids=END_IDS, top_p=top_p, num_slots=num_slots)
    return generate_answers(model, PROMPTS, requests() if asked is None else asked, limits)


def group_generator(model: Any, **keys: Any) -> GroupGenerator:
    tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=1, decode=lambda ids, **_: " ".join(map(str, ids)))
    arguments = GenerationArguments(**{"max_new_tokens": 12, "generation_batch_size": 7, "seed": 3} | keys)
    settings = SamplingSettings.of(arguments, purpose="s")
    return GroupGenerator(model, tokenizer, settings, end_ids=END_IDS, longest=29)


# -- the next token ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uniform", "temperature", "top_p", "token"),
    [
        # Probabilities 0.1, 0.5, 0.4: cumulative 0.1, 0.6, 1.0.
        (0.05, 1.0, 1.0, 0),
        (0.15, 1.0, 1.0, 1),
        (0.59, 1.0, 1.0, 1),
        (0.61, 1.0, 1.0, 2),
        (0.999, 1.0, 1.0, 2),
        # Temperature 0.5 squares them: 0.01, 0.25, 0.16 of 0.42, cumulative 0.0238, 0.619, 1.
        (0.05, 0.5, 1.0, 1),
        (0.61, 0.5, 1.0, 1),
        (0.63, 0.5, 1.0, 2),
        # top_p 0.8 needs tokens 1 and 2; 0 can't come. Of 0.9: cumulative 0, 0.556, 1.
        (0.05, 1.0, 0.8, 1),
        (0.55, 1.0, 0.8, 1),
        (0.56, 1.0, 0.8, 2),
        # top_p 0.45 is reached by token 1 already.
        (0.0, 1.0, 0.45, 1),
        (0.999, 1.0, 0.45, 1),
        # The most probable one, whatever the noise.
        (0.999, 0.0, 1.0, 1),
    ],
)
def test_the_token_at_which_the_cumulative_probability_passes_the_noise(uniform, temperature, top_p, token):
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.4]]))
    noise_B, temperature_B = torch.tensor([uniform]), torch.tensor([temperature], dtype=torch.float64)
    assert choose(logits, noise_B, temperature_B, top_p=top_p).tolist() == [token]


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.3, 3.0])  # a nucleus of more than the first candidates, and of fewer
def test_choosing_is_the_plain_definition_in_a_cheaper_order(top_p, dtype, spread):
    generator = torch.Generator().manual_seed(5)
    # bfloat16: thousands of tokens are equally probable, and of those at the nucleus' edge the first belong to it.
    logits = (torch.randn(64, 3000, generator=generator) * spread).to(dtype)
    noise_B = torch.rand(64, generator=generator, dtype=torch.float64)
    temperature_B = torch.tensor([0.5, 1.0, 1.7, 0.0] * 16, dtype=torch.float64)
    found = choose(logits, noise_B, temperature_B, top_p=top_p)
    for row in range(64):
        probabilities = torch.softmax(logits[row].double() / max(float(temperature_B[row]), 1e-9), -1)
        in_order, order = probabilities.sort(descending=True, stable=True)
        kept = order[in_order.cumsum(0) - in_order < top_p]
        left = torch.zeros_like(probabilities)
        left[kept] = probabilities[kept]
        cumulative = left.cumsum(0)
        plain = (
            int((cumulative <= noise_B[row] * cumulative[-1]).sum())
            if temperature_B[row]
            else int(logits[row].argmax())
        )
        if int(found[row]) != plain:  # where float32 rounds to the other side of a boundary
            assert abs(float(cumulative[plain] - cumulative[int(found[row])])) < 1e-3, row
            edges = cumulative / cumulative[-1] - noise_B[row]
            assert float(edges.abs().min()) < 1e-5, row


def test_a_rows_token_does_not_depend_on_the_other_rows():
    generator = torch.Generator().manual_seed(6)
    logits, noise_B = torch.randn(9, 700, generator=generator), torch.rand(9, generator=generator)
    temperature_B = torch.ones(9, dtype=torch.float64)
    for top_p in (1.0, 0.9):
        together = choose(logits, noise_B, temperature_B, top_p=top_p)
        alone = [choose(logits[i : i + 1], noise_B[i : i + 1], temperature_B[:1], top_p=top_p) for i in range(9)]
        assert together.tolist() == torch.cat(alone).tolist()


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_no_token_without_probability_is_chosen_at_the_ends_of_the_noise(top_p):
    logits = torch.full((2, 600), -torch.inf)
    logits[:, 300:302] = 0.0
    found = choose(logits, torch.tensor([0.0, 1.0]), torch.ones(2, dtype=torch.float64), top_p=top_p)
    assert found.tolist() == ([300, 301] if top_p == 1 else [300, 300])


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.75), (0.0, 1.0)])
def test_answers_are_those_of_generate(kind, temperature, top_p):
    model = make(kind)
    assert supports_shared_prompts(model, longest=29)
    asked = requests(temperature=temperature)
    answers = generate(model, asked, top_p=top_p)
    assert answers == group_generator(model, top_p=top_p).by_generate(PROMPTS, asked)
    assert temperature < 1 or len({len(ids) for ids in answers}) > 3, "they must be ragged to show something"
    for ids in answers:
        assert (ids[-1] in END_IDS or len(ids) == 12) and not END_IDS & set(ids[:-1])


@pytest.mark.parametrize("num_slots", [1, 2, 3, 20, 100])
def test_answers_do_not_depend_on_how_many_are_generated_at_a_time(num_slots):
    model = make("llama")
    assert generate(model, num_slots=num_slots) == generate(model)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("num_slots", [3, 7, 20])
@pytest.mark.parametrize("page", [1, 4])
def test_answers_do_not_depend_on_the_page_size(kind, num_slots, page, monkeypatch):
    """Answers of up to 12 tokens allocate, free and exchange many pages, and prompts' pages change their width."""
    model = make(kind)
    expected = group_generator(model).by_generate(PROMPTS, requests())
    monkeypatch.setattr(page_pool, "PAGE", page)
    assert generate(model, num_slots=num_slots) == expected


def test_prompts_with_one_answer_and_several_temperatures_share_a_batch():
    model = make("llama")
    asked = [
        DecodingRequest(2, 0.0, noise("s", "2", 0, 12)),
        DecodingRequest(0, 1.3, noise("s", "0", 5, 12)),
        DecodingRequest(0, 0.4, noise("s", "0", 6, 12)),
        DecodingRequest(4, 1.0, noise("s", "4", 0, 12)),
    ]
    assert generate(model, asked, num_slots=3) == [generate(model, [one])[0] for one in asked]


class Watched(PromptCache):
    """Remembers the lengths of prefilled prompts, and the number of rows of each step."""

    prefills: list[list[int]]
    steps: list[int]

    def prefill(self, prompts: Any) -> Any:
        type(self).prefills.append([len(ids) for ids in prompts])
        return super().prefill(prompts)

    def step(self, rows: Any, tokens: Any) -> torch.Tensor:
        type(self).steps.append(len(rows))
        return super().step(rows, tokens)


@pytest.fixture
def watched(monkeypatch) -> type[Watched]:
    Watched.prefills, Watched.steps = [], []
    monkeypatch.setattr(decoding, "PromptCache", Watched)
    return Watched


def test_a_prompt_is_prefilled_once_and_finished_sequences_free_their_slot_at_once(watched):
    answers = generate(make("llama"), num_slots=7)
    assert watched.prefills == [[len(ids) for ids in PROMPTS]]
    # The first token comes from the prompt, so an answer of n tokens has n - 1 steps.
    assert sum(watched.steps) == sum(len(ids) - 1 for ids in answers)
    full = [count == 7 for count in watched.steps]
    assert full == sorted(full, reverse=True), "as long as answers wait, no slot is free"
    assert sum(full) >= 8 and watched.steps[-1] < 7


def test_no_more_prompts_are_prefilled_ahead_than_fill_a_matrix_product(watched, monkeypatch):
    expected = generate(make("llama"), num_slots=100)
    watched.prefills = []
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 14)
    assert generate(make("llama"), num_slots=2) == expected
    assert watched.prefills == [[10, 3], [3, 1], [17]]


def test_half_precision_is_supported():
    model = make("llama").to(torch.bfloat16)
    assert supports_shared_prompts(model, longest=29)
    pairs = zip(generate(model), group_generator(model).by_generate(PROMPTS, requests()), strict=True)
    assert sum(ours[0] == theirs[0] for ours, theirs in pairs) >= 16, "of 20 first tokens, some by rounding"


def test_a_repeated_group_is_the_same_and_leaves_the_model_unchanged():
    model = make("llama")
    ids = torch.tensor([PROMPTS[0]])
    before, implementation = model(input_ids=ids).logits, model.config._attn_implementation
    assert generate(model) == generate(model)
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(input_ids=ids).logits, before)


# -- unsupported models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("mistral", {"sliding_window": 28}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 28, "max_window_layers": 1}),
        ("gemma3_text", {"sliding_window": 28}),
        ("gemma2", {}),  # its scores are capped
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
        ("bloom", {"n_head": 4}),  # it has its own attention
        ("mamba", {}),
    ],
)
def test_an_unsupported_attention_falls_back_to_generate_and_is_logged_once(kind, keys, caplog):
    generator = group_generator(make(kind, **keys))
    prompts = [Prompt(prompt=[Message(role="user", content=str(number))]) for number in range(5)]
    items = [PromptRequests(PROMPTS[n], [SampleRequest(prompts[n], k) for k in range(2)]) for n in range(5)]
    with caplog.at_level(logging.INFO):
        first = generator.generate(items)
        assert generator.generate(items) == first
    assert (
        caplog.text.count("this model's attention is not supported by the fast sampler; falling back to generate()")
        == 1
    )
    assert [len(own) for own in first] == [2] * 5 and all(answer["ids"] for own in first for answer in own)


def test_a_window_as_long_as_the_longest_row_masks_nothing():
    model = make("mistral", sliding_window=29)
    assert supports_shared_prompts(model, longest=29)
    assert not supports_shared_prompts(model, longest=30)


def test_a_model_with_different_outputs_is_detected(monkeypatch):
    model = make("llama")
    step = PromptCache.step
    monkeypatch.setattr(PromptCache, "step", lambda self, rows, tokens: step(self, rows, tokens).roll(1, 0))
    assert not supports_shared_prompts(model, longest=29)
