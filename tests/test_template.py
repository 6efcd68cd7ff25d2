"""Which tokens are trained, under any template; and the folder that prepare_base makes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, run_here, weights_of

from data_schemas.reading import read_conversations, read_rows, write_rows
from data_schemas.rows import Conversation, Message, Prompt
from data_schemas.stage_keys import ConfigError
from engine.generation import Answer, Ask
from engine.template import CHATML, encode_answer, encode_dialog, encode_prompt, end_of_turn, render

# name -> (template, its special tokens, end token, the dialog TURNS as it renders). What ⟦…⟧ encloses is trained; the
# dialog goes up to the last trained token. The templates are the models' own, with newlines written as \n.
GOLDEN = {
    "chatml": (
        CHATML,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        "<|im_start|>user\nCapital of France?<|im_end|>\n<|im_start|>assistant\n⟦Paris.<|im_end|>⟧\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n⟦Yes, Paris!<|im_end|>⟧",
    ),
    "llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 "
        "%}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nCapital of France?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Paris.<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Yes, Paris!<|eot_id|>⟧",
    ),
    "gemma": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] "
        "| trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
        "<bos><start_of_turn>user\nCapital of France?<end_of_turn>\n<start_of_turn>model\n⟦Paris.<end_of_turn>⟧\n"
        "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n⟦Yes, Paris!<end_of_turn>⟧",
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
        "message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
        ["<s>", "</s>"],
        "</s>",
        "<s>[INST] Capital of France? [/INST]⟦ Paris.</s>⟧[INST] Sure? [/INST]⟦ Yes, Paris!</s>⟧",
    ),
    "zephyr": (  # its generation prompt ends before the newline
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
        "eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + message['content'] + "
        "eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}",
        ["</s>"],
        "</s>",
        "<|user|>\nCapital of France?</s>\n<|assistant|>\n⟦Paris.</s>⟧\n"
        "<|user|>\nSure?</s>\n<|assistant|>\n⟦Yes, Paris!</s>⟧",
    ),
}
TURNS = [
    Message(role="user", content="Capital of France?"),
    Message(role="assistant", content="Paris."),
    Message(role="user", content="Sure?"),
    Message(role="assistant", content="Yes, Paris!"),
]
HARD_ANSWERS = ["\n\nTwo\n\nparagraphs\n", "  indented", "    ", "été 日本 🙂", "<|im_end|", "\n", "def f():\n    return 1"]


def with_template(template: str, special_tokens: list[str], end: str, **options: Any) -> Any:
    tokenizer = byte_tokenizer(special_tokens=special_tokens, **options)
    tokenizer.eos_token, tokenizer.chat_template = end, template
    starts = [token for token in special_tokens if token in ("<s>", "<bos>", "<|begin_of_text|>")]
    tokenizer.bos_token = starts[0] if starts else None
    return tokenizer


@pytest.fixture(params=sorted(GOLDEN))
def golden(request) -> tuple[Any, str]:
    template, special_tokens, end, marked = GOLDEN[request.param]
    return with_template(template, special_tokens, end), marked


def expected(tokenizer: Any, marked: str) -> tuple[list[int], list[bool]]:
    """Tokens and mask of a marked text, each piece of it tokenized alone."""
    ids: list[int] = []
    trained: list[bool] = []
    for position, piece in enumerate(re.split("[⟦⟧]", marked)):
        tokens = tokenizer(piece, add_special_tokens=False)["input_ids"]
        ids += tokens
        trained += [position % 2 == 1] * len(tokens)
    return ids, trained


def test_golden_token_masks_of_five_templates(golden):
    tokenizer, marked = golden
    dialog = encode_dialog(tokenizer, TURNS)
    ids, trained = expected(tokenizer, marked)
    assert tokenizer.decode(dialog.ids) == re.sub("[⟦⟧]", "", marked)
    assert [(tokenizer.decode([i]), t) for i, t in zip(dialog.ids, dialog.trained, strict=True)] == [
        (tokenizer.decode([i]), t) for i, t in zip(ids, trained, strict=True)
    ]
    assert dialog.ids == ids
    assert dialog.labels == [i if t else -100 for i, t in zip(ids, trained, strict=True)]


def test_every_trained_turn_ends_in_a_labelled_end_token(golden):
    tokenizer, _ = golden
    labels = encode_dialog(tokenizer, TURNS).labels
    last_of_turns = [label for label, after in zip(labels, [*labels[1:], -100], strict=True)
                     if label != -100 and after == -100]  # fmt: skip
    assert last_of_turns == [tokenizer.eos_token_id] * 2


def test_only_turns_from_train_from_on_are_trained(golden):
    tokenizer, marked = golden
    first, second = (match.end() for match in re.finditer("⟧", marked))
    dialog = encode_dialog(tokenizer, TURNS, train_from=2)
    ids, trained = expected(tokenizer, marked[:first].replace("⟦", "").replace("⟧", "") + marked[first:second])
    assert (dialog.ids, dialog.trained) == (ids, trained)


@pytest.mark.parametrize("answer", HARD_ANSWERS)
def test_the_prompt_that_is_generated_from_is_a_prefix_of_the_dialog(golden, answer):
    """Also where the answer begins with white space, which a tokenizer joins with what stands before it."""
    tokenizer, marked = golden
    if "| trim" in tokenizer.chat_template and not answer.strip():
        pytest.skip("this template leaves nothing of a blank answer")
    # "\n\n" and "  " become one token each, as in real vocabularies.
    tokenizer.add_tokens(["\n\n", "  "])
    turns = [*TURNS[:3], Message.model_construct(role="assistant", content=answer)]
    prompt = encode_prompt(tokenizer, turns[:3])
    prompt_ids, answer_ids = encode_answer(tokenizer, turns[:3], turns[3:])
    assert prompt_ids == prompt
    told = tokenizer.decode(answer_ids)
    assert answer_ids[-1] == tokenizer.eos_token_id
    wanted = answer.strip() if "| trim" in tokenizer.chat_template else answer
    assert told.removesuffix(tokenizer.eos_token).endswith(wanted)
