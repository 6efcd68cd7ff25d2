"""The chat template of a reward model: a dialog that ends in an answer ends at the answer's end token.

A reward model's score is read at the last token. Our stages give it the tokens up to the end token of the answer, but
most templates write a line break after that token, and `apply_chat_template` would have the score read there. The
template that is saved with a reward model is the policy's, cut after the last end token.
"""

import json

from transformers import PreTrainedTokenizerBase

# '' keeps line breaks and spaces at the ends of the template, which Jinja removes beside a block.
BEFORE, AFTER = "{% set dialog %}{{ '' }}", "{{ '' }}{% endset %}"
WITHOUT_LAST_BREAK = "{% set dialog = dialog[:-1] %}"  # a line break at a file's end, which Jinja removes
CUT = (
    "{% if messages[-1]['role'] == 'assistant' and END in dialog and not add_generation_prompt %}"
    "{{ dialog.rsplit(END, 1)[0] + END }}{% else %}{{ dialog }}{% endif %}"
)


def end_at_the_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets, in place, what the plain way of scoring needs: the cut template, and padding after the tokens."""
    template = plain_template(str(tokenizer.chat_template))
    last_break = WITHOUT_LAST_BREAK if template.endswith("\n") else ""
    cut = CUT.replace("END", json.dumps(str(tokenizer.eos_token), ensure_ascii=False))
    tokenizer.chat_template = BEFORE + template + AFTER + last_break + cut
    tokenizer.padding_side = "right"


def plain_template(template: str) -> str:
    """The template without the cut; one without a cut is returned unchanged."""
    is_cut = template.startswith(BEFORE) and AFTER in template
    return template[len(BEFORE) : template.rindex(AFTER)] if is_cut else template
