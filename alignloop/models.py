"""The best policy of a run: its folder, and the model itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.results import RunFolder, summary
from pipeline.state.models import model_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def best_policy(run: RunFolder) -> Path:
    """The folder of the best policy's model, as `save_pretrained` writes it.

    It is the one that the newest evaluation chose; of a run without rounds, the last policy. Raises ConfigError where
    no policy is finished.
    """
    summary(run)  # raises for a folder that is no run
    return Path(model_of(str(run)))


def load_best_policy(run: RunFolder, **options: Any) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The best policy and its tokenizer, with its chat template, by transformers. Loads torch.

    `options` go to AutoModelForCausalLM.from_pretrained, as in device_map="cuda", dtype="bfloat16" or
    trust_remote_code=True. Raises as `best_policy` does.
    """
    folder = best_policy(run)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trusts = {"trust_remote_code": options["trust_remote_code"]} if "trust_remote_code" in options else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **trusts)
