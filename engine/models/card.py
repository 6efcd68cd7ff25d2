"""The model card of a saved model: README.md, beside its weights. It names no folder of the user's machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_schemas.files import digest_text

CARD = "README.md"

SCORE = """
## How to score

The score of an answer is a logit, in reward units; only differences between answers to one prompt have a meaning. It is
read at the end token of the answer. The chat template of this folder ends there, so the plain way gives the scores that
the model was trained and evaluated with:

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # the folder of this file, or the model's name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
dialogs = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]]
batch = tokenizer.apply_chat_template(dialogs, tokenize=True, padding=True, return_dict=True, return_tensors="pt")
scores = model(**batch).logits[:, 0]
```

Pad on the right, as this tokenizer does. The score of a text that does not end in the end token means nothing.
"""

CHAT = """
## How to use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file, or the model's name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
```

The chat template is saved with the tokenizer, and an answer ends in the end token below.
"""


@dataclass(frozen=True)
class ModelCard:
    """What a card says."""

    stage: str
    base: str  # a folder or a hub name
    data: Sequence[str]  # names of the files of training rows
    step: int  # of training, at which the model was saved
    eval_loss: float
    contract: Mapping[str, str]  # see engine/tokens/contract.py
    is_reward_model: bool


def write_card(folder: Path, card: ModelCard) -> None:
    """Writes the card into the model's folder."""
    # A file may be a link to a checkpoint's.
    (folder / CARD).unlink(missing_ok=True)
    (folder / CARD).write_text(card_text(card), encoding="utf-8")


def card_text(card: ModelCard) -> str:
    """The card as Markdown."""
    title = "Reward model" if card.is_reward_model else "Language model"
    template = card.contract.get("chat_template", "")
    rows = {
        "trained by": f"stage `{card.stage}` of alignloop, step {card.step}",
        "base": f"`{base_name(card.base)}`" if card.base else "random weights",
        "rows": ", ".join(f"`{name}`" for name in card.data),
        "held-out loss": f"{card.eval_loss:.4f}",
        "end token": f"`{card.contract.get('eos_token', '')}`",
        "padding token": f"`{card.contract.get('pad_token', '')}`",
        "tokenizer": f"`{card.contract.get('tokenizer', '')[:16]}` (hash)",
        "chat template": f"`{digest_text(template)[:16]}` (hash)" if template else "none",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    use = SCORE if card.is_reward_model else CHAT if template else ""
    return f"# {title}\n\n| | |\n|---|---|\n{table}\n{use}"


def base_name(base: str) -> str:
    """A hub name as it is; of a folder the last part, or the step's folder where that is just `model`."""
    path = Path(base)
    if not path.exists() and not path.is_absolute():
        return base
    return path.parent.name if path.name == "model" else path.name
