"""A saved reward model gives our scores to plain transformers code, and its card says how."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data_schemas.artifact import Artifact
from data_schemas.rows import Message
from engine.judging.shared_scoring import SharedScorer
from engine.models.card import CARD, base_name
from engine.models.loading import load_reward, load_tokenizer
from engine.tokens.contract import contract_of
from engine.tokens.reward_template import end_at_the_end_token, plain_template
from engine.tokens.template import encode_answer, render

DIALOGS = [
    ("Hi", "Hello"),
    ("What is the capital of France?", "Paris.\n\nIt is a city on the Seine.\n"),
    ("And of Peru?", "Lima"),
]
TEMPLATES = {
    "a line break after the end token": None,  # ChatML, of the fixture
    "a line break before and after the dialog": "\n{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}\n\n",
    "nothing after the end token": "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}",
}


def messages(prompt: str, answer: str) -> list[Message]:
    return [Message(role="user", content=prompt), Message(role="assistant", content=answer)]


def test_the_plain_way_gives_our_scores(tiny_reward_model):
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_reward_model)
    model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model).eval()
    ours, groups = load_tokenizer(str(tiny_reward_model)), []
    for prompt, answer in DIALOGS:
        turns = messages(prompt, answer)
        groups.append([encode_answer(ours, turns[:1], turns[1:])])
    wanted = SharedScorer(load_reward(str(tiny_reward_model)).eval(), is_reward_model=True).rewards(groups)
    dialogs = [[turn.model_dump(include={"role", "content"}) for turn in messages(*dialog)] for dialog in DIALOGS]
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    with torch.no_grad():
        single = [float(model(**tokenizer.apply_chat_template([one], **options)).logits[0, 0]) for one in dialogs]
        batched = model(**tokenizer.apply_chat_template(dialogs, padding=True, **options)).logits[:, 0].tolist()
    assert single == pytest.approx(wanted, abs=1e-5)
    assert batched == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 1e-3


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_saved_template_ends_at_the_end_token_and_changes_nothing_else(template, tiny_model):
    plain, cut = load_tokenizer(str(tiny_model)), load_tokenizer(str(tiny_model))
    if template:
        plain.chat_template = cut.chat_template = template
    end_at_the_end_token(cut)
    prompt, answer = messages("Hi", "Say <|im_end|> twice")[:1], messages("Hi", "It\n")[1:]
    whole = render(plain, [*prompt, *answer])
    assert render(cut, [*prompt, *answer]) == whole[: whole.rindex("<|im_end|>") + len("<|im_end|>")]
    assert render(cut, prompt) == render(plain, prompt)
    assert render(cut, prompt, generation_prompt=True) == render(plain, prompt, generation_prompt=True)
    assert encode_answer(cut, prompt, answer) == encode_answer(plain, prompt, answer)
    assert plain_template(str(cut.chat_template)) == plain.chat_template
    once = cut.chat_template
    end_at_the_end_token(cut)
    assert cut.chat_template == once


def test_a_reward_model_has_the_contract_of_its_policy(tiny_model, tiny_reward_model):
    policy, reward = load_tokenizer(str(tiny_model)), load_tokenizer(str(tiny_reward_model))
    assert policy.chat_template != reward.chat_template
    assert contract_of(reward) == contract_of(policy)
    record = Artifact.read(tiny_reward_model.parent)
    assert record is not None and record.contract == contract_of(policy)
    assert plain_template(str(policy.chat_template)) == policy.chat_template


def test_the_card_says_how_to_score_and_names_no_folder_of_this_machine(tiny_reward_model, tmp_path, monkeypatch):
    card = (tiny_reward_model / CARD).read_text()
    for part in ("# Reward model", "AutoModelForSequenceClassification", "pairs.jsonl", "<|im_end|>", "step "):
        assert part in card
    for folder in (str(tiny_reward_model.parent.parent), str(tmp_path.parent), "/tmp"):
        assert folder not in card
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    monkeypatch.chdir(tiny_reward_model)
    exec(code, names)
    assert names["scores"].shape == (1,)
    record = Artifact.read(tiny_reward_model.parent)
    assert record is not None and f"model/{CARD}" in record.files


def test_a_base_is_named_without_its_path(tmp_path):
    (tmp_path / "round-1.sft-ab12" / "model").mkdir(parents=True)
    assert base_name(str(tmp_path / "round-1.sft-ab12" / "model")) == "round-1.sft-ab12"
    assert base_name("meta/some-model") == "meta/some-model"
    assert base_name("/nowhere/private/base") == "base"
