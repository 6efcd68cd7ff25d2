"""Five chat templates and one dialog, with the tokens and masks that each must give."""

from data_schemas.rows import Message
from engine.tokens.template import CHATML

# name -> (template, its special tokens, end token, the dialog TURNS as it renders). Tokens in ⟦…⟧ are trained, those
# in ⟪…⟫ are the answer's own content; the dialog goes up to the last trained token. The templates are the models'
# own, with newlines written as \n.
GOLDEN = {
    "chatml": (
        CHATML,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        "<|im_start|>user\nCapital of France?<|im_end|>\n<|im_start|>assistant\n⟦⟪Paris.⟫<|im_end|>⟧\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n⟦⟪Yes, Paris!⟫<|im_end|>⟧",
    ),
    "llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 "
        "%}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nCapital of France?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦⟪Paris.⟫<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦⟪Yes, Paris!⟫<|eot_id|>⟧",
    ),
    "gemma": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] "
        "| trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}"
        "{% endif %}",
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
        "<bos><start_of_turn>user\nCapital of France?<end_of_turn>\n<start_of_turn>model\n⟦⟪Paris.⟫<end_of_turn>⟧\n"
        "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n⟦⟪Yes, Paris!⟫<end_of_turn>⟧",
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
        "message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
        ["<s>", "</s>"],
        "</s>",
        "<s>[INST] Capital of France? [/INST]⟦ ⟪Paris.⟫</s>⟧[INST] Sure? [/INST]⟦ ⟪Yes, Paris!⟫</s>⟧",
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
        "eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + message['content'] + "
        "eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}",
        ["</s>"],
        "</s>",
        "<|user|>\nCapital of France?</s>\n<|assistant|>\n⟦⟪Paris.⟫</s>⟧\n"
        "<|user|>\nSure?</s>\n<|assistant|>\n⟦⟪Yes, Paris!⟫</s>⟧",
    ),
}
TURNS = [
    Message(role="user", content="Capital of France?"),
    Message(role="assistant", content="Paris."),
    Message(role="user", content="Sure?"),
    Message(role="assistant", content="Yes, Paris!"),
]
