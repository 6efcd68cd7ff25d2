"""A chat model as a hub has it, whose pad token is its end token or missing, answers as one with a pad token."""

from pathlib import Path

import pytest
import torch

from data_schemas.errors import DataError
from engine.judging.divergence import kl_to_first
from engine.judging.shared_scoring import ScoringSettings
from engine.models.loading import load_tokenizer
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer, Policy, SampleRequest, SamplingSettings
from engine.sampling.transformers_engine import GroupGenerator, TransformersEngine
from engine.tasks.multiple_choice import choose, question_of
from engine.tokens.rendering import DEFAULT_DATE, render
from engine.tokens.template import CHATML
from tests.toy_models import changed_copy
from tests.toy_prompts import PROMPTS

END = "<|im_end|>"
SETTINGS = ScoringSettings(torch.device("cpu"), "float32", 8)
CHOICES = {"question": "Which one is a capital?", "choices": ["Lima", "Peru, a country", "a dog"], "answer": 0}


@pytest.fixture(scope="module", params=["end token", "none"])
def unchanged(request, tiny_model, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    if request.param == "none":
        return changed_copy(tiny_model, folder, pad=None, pad_token=None)
    return changed_copy(tiny_model, folder, pad=tokenizer.eos_token_id, pad_token=END)


def stage_in(folder: Path) -> Stage:
    folder.mkdir()
    return Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)


def draw(folder: Path, model: Path) -> list[Answer]:
    """Answers of which some end and some do not, in batches that mix both."""
    arguments = GenerationArguments(seed=5, max_new_tokens=80, use_cpu=True, dtype="float32", generation_batch_size=8)
    settings = SamplingSettings.of(arguments, purpose="p")
    requests = [SampleRequest(prompt, k) for prompt in PROMPTS for k in range(3)]
    return TransformersEngine.load(stage_in(folder), "answers", Policy(str(model), "tiny"), settings).sample(requests)


@pytest.mark.parametrize("shares", [True, False], ids=["continuous batching", "generate"])
def test_the_answers_and_their_ends_are_those_of_the_prepared_model(
    shares, tiny_model, unchanged, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(GroupGenerator, "shares_prompts", shares)
    answers = draw(tmp_path / "hub", unchanged)
    assert answers == draw(tmp_path / "prepared", tiny_model)
    assert {answer.ended for answer in answers} == {True, False}
    for answer in answers:
        assert answer.ids.count(tokenizer.eos_token_id) == answer.ended == (answer.ids[-1] == tokenizer.eos_token_id)


def test_its_choices_and_its_divergence_are_those_of_the_prepared_model(tiny_model, unchanged, tmp_path):
    grades = [
        choose(stage_in(tmp_path / f"choices-{number}"), [question_of(CHOICES)], str(model), SETTINGS)
        for number, model in enumerate((tiny_model, unchanged))
    ]
    assert grades[0] == grades[1]
    answers = draw(tmp_path / "answers", tiny_model)[:4]
    away = kl_to_first(
        stage_in(tmp_path / "kl"), answers, SETTINGS, policy=str(unchanged), first_policy=str(tiny_model)
    )
    assert away == pytest.approx(0.0, abs=1e-6)


def test_a_training_stage_refuses_it_and_says_how_it_is_prepared(unchanged):
    with pytest.raises(DataError, match="uses its end token as one; give it as base_model of a recipe"):
        load_tokenizer(str(unchanged))


def test_a_reward_model_that_pads_with_its_end_token_is_refused_for_another_reason(tiny_reward_model, tmp_path):
    folder = changed_copy(tiny_reward_model, tmp_path / "rm", pad=None, pad_token=END)
    with pytest.raises(DataError, match="reads a reward model's score at the last token that is not the pad token"):
        load_tokenizer(str(folder))


def test_a_chat_model_whose_answers_have_no_end_is_refused(tiny_model, tmp_path):
    folder = changed_copy(tiny_model, tmp_path / "endless", pad=None, eos_token=None, pad_token=None)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(
        DataError, match="has no end token, and its chat template closes a turn without a special token"
    ):
        load_policy_tokenizer(str(folder))


def test_an_answer_ends_where_the_template_closes_a_turn_and_the_date_is_fixed(tiny_model, tmp_path):
    """As with Gemma, whose own end token is another one, and Llama 3.1, whose template writes the current date."""
    folder = changed_copy(tiny_model, tmp_path / "dated", pad=None, eos_token="<|endoftext|>", pad_token=None)
    dated = "{{ strftime_now('%Y-%m-%d') }}" + CHATML
    (folder / "chat_template.jinja").write_text(dated)
    loaded = load_policy_tokenizer(str(folder))
    assert (loaded.eos_token, loaded.pad_token) == (END, END)
    assert render(loaded, PROMPTS[0].prompt).startswith(DEFAULT_DATE)


def test_a_prepared_model_keeps_its_tokens(tiny_model):
    loaded, own = load_policy_tokenizer(str(tiny_model)), load_tokenizer(str(tiny_model))
    assert loaded.special_tokens_map == own.special_tokens_map and loaded.pad_token != loaded.eos_token
    assert loaded.chat_template == own.chat_template
