"""LoRA adapters (arXiv 2106.09685): their configuration, and merging an adapter into its base model."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config

from engine.models.loading import load_causal, load_reward, read_tokenizer, without_launcher
from engine.models.new_tokens import names_of_embeddings, untrained_tokens
from engine.runtime import progress, timing

if TYPE_CHECKING:
    from peft import PeftConfig

log = logging.getLogger(__name__)


def lora_config(
    model: ModelConfig,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_reward_model: bool = False,
) -> "PeftConfig | None":
    """The adapter's configuration, or None without use_peft. `policy` is the model that gets the adapters.

    A reward model's score head is trained in full. The rows of template tokens that are new to the base are trained
    too (new_tokens.py), unless the keys train their matrix anyway. Tied embeddings stay tied.
    """
    if not model.use_peft:
        return None
    model.lora_task_type = "SEQ_CLS" if is_reward_model else "CAUSAL_LM"
    if is_reward_model:
        model.lora_modules_to_save = sorted({"score", *(model.lora_modules_to_save or [])})
    config = get_peft_config(model)
    assert config is not None
    matrices = names_of_embeddings(policy)
    trained = {*(model.lora_modules_to_save or []), *_names(model.lora_target_modules)}
    tokens = untrained_tokens(policy, tokenizer)
    indices = {name: tokens for name in matrices if name not in trained}
    if tokens and indices:
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(tokens)))
        log.info("new to the base model: %s; their rows of %s are trained too", names, " and ".join(indices))
        config.trainable_token_indices = indices  # pyright: ignore[reportAttributeAccessIssue]
    is_tied = len(matrices) == 1 and policy.get_output_embeddings() is not None
    config.ensure_weight_tying = is_tied and bool(tokens or trained & {*matrices, "lm_head"})  # pyright: ignore[reportAttributeAccessIssue]
    return config


def _names(targets: list[str] | str | None) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets or [])


@timing.part("save")
@progress.activity("merging the adapter")
def merge_adapter(
    base: str, adapter: Path, out: Path, *, is_reward_model: bool, dtype: str, in_own_process: bool
) -> None:
    """Writes the model with the adapter's weights added to the base's, and its tokenizer, into the folder `out`.

    `in_own_process` is for a process under ZeRO, which would divide the weights that are loaded.
    """
    words = [base, str(adapter), str(out), "reward" if is_reward_model else "causal", dtype]
    if not in_own_process:
        _merge(*words)
        return
    # -P: a folder named engine/ in the working directory would mask ours.
    command = [sys.executable, "-P", "-m", "engine.models.lora", *words]
    done = subprocess.run(command, env=without_launcher(), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"merging {adapter} into {base} failed: {lines[-1]}")


def _merge(base: str, adapter: str, out: str, kind: str, dtype: str) -> None:
    from peft import PeftModel

    model = load_reward(base, dtype=dtype) if kind == "reward" else load_causal(base, dtype=dtype)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()  # pyright: ignore[reportCallIssue]
    if kind == "reward":
        merged.config.pad_token_id = read_tokenizer(base).pad_token_id
    merged.save_pretrained(out)
    read_tokenizer(base).save_pretrained(out)


if __name__ == "__main__":
    _merge(*sys.argv[1:])
