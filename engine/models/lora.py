"""LoRA adapters (arXiv 2106.09685): their configuration, and merging an adapter into its base model."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trl import ModelConfig, get_peft_config

from engine.models.loading import load_causal, load_reward, read_tokenizer, without_launcher
from engine.runtime import progress, timing

if TYPE_CHECKING:
    from peft import PeftConfig


def lora_config(model: ModelConfig, *, is_reward_model: bool = False) -> "PeftConfig | None":
    """The adapter's configuration, or None without use_peft. A reward model's score head is trained in full."""
    if not model.use_peft:
        return None
    model.lora_task_type = "SEQ_CLS" if is_reward_model else "CAUSAL_LM"
    if is_reward_model:
        model.lora_modules_to_save = sorted({"score", *(model.lora_modules_to_save or [])})
    return get_peft_config(model)


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
