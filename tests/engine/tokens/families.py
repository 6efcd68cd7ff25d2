"""Small templates of our own that behave, in what matters for training, as those of well-known model families do."""

from dataclasses import dataclass

HEADER = "{% if add_generation_prompt %}"
FOLLOWED = "{% for m in messages %}"

CHATML = (
    FOLLOWED + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + HEADER + "<|im_start|>assistant\n"
    "{% endif %}"
)
# Content is trimmed; the first tokens are BOS; a system turn is always there.
LLAMA_3 = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|start|>system<|header|>\n\nKnowledge until 2023<|eot|>"
    "{% endif %}{% for m in messages %}<|start|>{{ m.role }}<|header|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    + HEADER
    + "<|start|>assistant<|header|>\n\n{% endif %}"
)
# A default system message; tools and calls as JSON between tags; results of tools as user turns.
QWEN_2_5 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.{% if tools %}{{ '\n<tools>' }}{% for t "
    "in tools %}{{ '\n' }}{{ t | tojson }}{% endfor %}{{ '\n</tools>' }}{% endif %}<|im_end|>\n{% endif %}{% for m in "
    "messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "<|im_end|>\n{% elif m.tool_calls %}<|im_start|>assistant{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for c in m.tool_calls %}{{ '\n<tool_call>\n' }}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    + HEADER
    + "<|im_start|>assistant\n{% endif %}"
)
# Thoughts only after the last question, and always, if empty, in the last turn.
QWEN_3 = (
    "{% set ns = namespace(asked=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}{% set thoughts = '' %}{% set said = "
    "m.content %}{% if m.reasoning_content is string %}{% set thoughts = m.reasoning_content %}{% elif '</think>' in "
    "m.content %}{% set thoughts = m.content.split('</think>')[0].split('<think>')[-1] %}{% set said = "
    "m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n{% if loop.index0 > ns.asked and "
    "(loop.last or thoughts) %}<think>\n{{ thoughts.strip('\n') }}\n</think>\n\n{% endif %}{{ said }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    + HEADER
    + "<|im_start|>assistant\n{% endif %}"
)
# The same with thinking switched off: the generation prompt holds the empty thoughts.
QWEN_3_OFF = QWEN_3.replace(
    HEADER + "<|im_start|>assistant\n", HEADER + "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
# No system role, strict alternation, content trimmed, assistant turns are the model's.
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must "
    "alternate') }}{% endif %}<|turn|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<|end|>\n{% endfor %}" + HEADER + "<|turn|>model\n{% endif %}"
)
# The system message is the beginning of the first user turn.
GEMMA_3 = (
    "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}{% set rest "
    "= messages[1:] if first else messages %}{% for m in rest %}<|turn|>{{ 'model' if m.role == 'assistant' else "
    "m.role }}\n{{ first if loop.first }}{{ m.content | trim }}<|end|>\n{% endfor %}"
    + HEADER
    + "<|turn|>model\n{% endif %}"
)
# Strict alternation; no generation prompt; a space before an answer.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Conversation roles must alternate') }}{% endif %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# The system message is in the last user turn, as long as that is the last message.
MISTRAL_3 = (
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% for m in "
    "(messages[1:] if system else messages) %}{% if m.role == 'user' %}[INST] {% if loop.last and system %}"
    "{{ system }}\n\n{% endif %}{{ m.content }}[/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
# A finished dialog is closed by one more end token.
PHI_3 = (
    FOLLOWED + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}" + HEADER + "<|assistant|>\n{% else %}"
    "{{ eos_token }}{% endif %}"
)
# Thoughts are opened by the generation prompt; no finished turn has them.
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'system' "
    "%}{{ m.content }}{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
    + HEADER
    + "<|Assistant|><think>\n{% endif %}"
)
# The same without thoughts in the generation prompt (its first version).
DEEPSEEK_R1_FIRST = DEEPSEEK_R1.replace("<think>\n{% endif %}", "{% endif %}")
# Channels; thoughts only in the last turn, which ends in another token than the earlier ones.
GPT_OSS = (
    "<|start|>system<|message|>Reasoning: medium<|close|>{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|close|>"
    "{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else "
    "'<|close|>' }}{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|close|>{% endif %}{% endfor %}"
    + HEADER
    + "<|start|>assistant{% endif %}"
)
ZEPHYR = (
    FOLLOWED + "<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}" + HEADER + "<|assistant|>\n{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}" + FOLLOWED + "<|turn|>{{ {'user': '<|USER|>', 'assistant': '<|CHATBOT|>', 'system': '<|SYSTEM|>'"
    "}[m.role] }}{{ m.content.strip() }}<|end|>{% endfor %}" + HEADER + "<|turn|><|CHATBOT|>{% endif %}"
)

EMPTY = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Family:
    template: str
    end: str  # of an assistant turn
    num_rows: int = 1  # that a dialog of three turns becomes
    header: str = ""  # what an answer begins with after the generation prompt
    has_system_role: bool = True
    special_tokens: tuple[str, ...] = ()


FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>", special_tokens=("<|im_start|>",)),
    "llama 3": Family(LLAMA_3, "<|eot|>", special_tokens=("<|start|>", "<|header|>", "<s>")),
    "qwen 2.5": Family(QWEN_2_5, "<|im_end|>", special_tokens=("<|im_start|>",)),
    "qwen 3": Family(QWEN_3, "<|im_end|>", num_rows=3, header=EMPTY, special_tokens=("<|im_start|>",)),
    "qwen 3, off": Family(QWEN_3_OFF, "<|im_end|>", num_rows=3, special_tokens=("<|im_start|>",)),
    "gemma 2": Family(GEMMA_2, "<|end|>", has_system_role=False, special_tokens=("<|turn|>", "<s>")),
    "gemma 3": Family(GEMMA_3, "<|end|>", special_tokens=("<|turn|>", "<s>")),
    "mistral": Family(MISTRAL, "</s>", header=" ", has_system_role=False, special_tokens=("<s>",)),
    "mistral 3": Family(MISTRAL_3, "</s>", header=" ", special_tokens=("<s>",)),
    "phi 3": Family(PHI_3, "<|end|>", special_tokens=("<|user|>", "<|assistant|>", "<|system|>")),
    "deepseek r1": Family(
        DEEPSEEK_R1, "<|end|>", num_rows=3, header="\n</think>\n\n", special_tokens=("<|User|>", "<|Assistant|>", "<s>")
    ),
    "deepseek r1, first": Family(DEEPSEEK_R1_FIRST, "<|end|>", special_tokens=("<|User|>", "<|Assistant|>", "<s>")),
    "gpt-oss": Family(
        GPT_OSS,
        "<|return|>",
        num_rows=3,
        header="<|channel|>final<|message|>",
        special_tokens=("<|start|>", "<|message|>", "<|channel|>", "<|close|>"),
    ),
    "zephyr": Family(ZEPHYR, "</s>"),
    "command-r": Family(
        COMMAND_R, "<|end|>", special_tokens=("<|turn|>", "<|USER|>", "<|CHATBOT|>", "<|SYSTEM|>", "<s>")
    ),
}
