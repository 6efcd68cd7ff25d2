"""The sides of the speed benchmark that train: our unchanged stages, and TRL's trainers as its commands build them."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed.instruments import Watch, watching

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Values = dict[str, Any]
Job = Values  # what a side is given
DPO_KEYS = {"loss_type": ["sigmoid"], "loss_weights": [1.0], "mask_formatting": False}  # TRL's loss


def common(job: Job) -> Values:
    """Keys of our sides and of TRL's. A job may have more of them, as `keys`."""
    return {
        "per_device_train_batch_size": job.get("micro_batch", job["batch"]),
        "max_steps": job["steps"],
        "learning_rate": 1e-6,
        "seed": 1,
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        **job.get("keys", {}),
    }


def run_as_stage(stage: str, folder: Path, keys: Values) -> None:
    """Runs a stage in this process with the words of a command line. Exits if the stage fails."""
    from engine.runtime.stage import run_stage

    module = importlib.import_module(f"stages.{stage}")
    words = [
        word
        for key, value in {**keys, "output_dir": folder}.items()
        for word in (f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)]))
    ]
    run_stage(stage, module.ARGUMENTS, module.main, defaults=getattr(module, "DEFAULTS", {}), words=words)


def training_values(watch: Watch, job: Job) -> Values:
    values = {"seconds": watch.seconds, "rows": job["steps"] * job["batch"], **watch.settings}
    if job.get("reports_steps"):
        values |= {"step_seconds": watch.steps, "losses": watch.losses, **watch.pass_values()}
    return values


def stage_keys(stage: str, job: Job, **keys: object) -> Values:
    held_out = Path(job["rows"]).with_name("held_out_dialogs.jsonl" if stage == "sft" else "held_out.jsonl")
    return common(job) | {
        "model_name_or_path": job["base"],
        "dtype": job.get("weights", "float32"),
        "train_data": [job["rows"]],
        "eval_data": [held_out],
        "global_batch_size": job["batch"],
        "eval_steps": 1000,  # so only at the start, before anything is timed
        **({"attn_implementation": job["attention"]} if job.get("attention") else {}),
        **keys,
    }


def train_ours(stage: str, job: Job, **keys: object) -> Values:
    with watching(counts_passes=job.get("reports_steps", False)) as watch:
        run_as_stage(stage, Path(job["folder"]) / "step", stage_keys(stage, job, **keys))
    return training_values(watch, job)


def load_for_trl(job: Job, *, is_reward_model: bool = False) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer. One forward pass touches the weights, so that reading them from disk is not timed."""
    import torch

    from engine.models.loading import load_causal, load_reward, load_tokenizer
    from engine.runtime.process import use_all_cores

    use_all_cores()
    load = load_reward if is_reward_model else load_causal
    attention = {"attn_implementation": job["attention"]} if job.get("attention") else {}
    tokenizer, model = load_tokenizer(job["base"]), load(job["base"], dtype=job.get("weights", "float32"), **attention)
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        model(input_ids=torch.arange(3, 19, device=model.device)[None])
    return model, tokenizer


def trl_config(config: type, job: Job, **keys: object) -> Any:
    """TRL's config. A job may have more keys for TRL only, as `trl`."""
    more = {
        "output_dir": str(Path(job["folder"]) / "trl"),
        "disable_tqdm": True,
        "gradient_accumulation_steps": job["batch"] // job.get("micro_batch", job["batch"]),
    }
    return config(**common(job) | more | keys | job.get("trl", {}))


def pairs_for_trl(job: Job) -> "Dataset":
    """The pairs in TRL's columns, as messages."""
    from datasets import Dataset

    from data_schemas.reading import read_rows
    from data_schemas.rows import PreferencePair, for_template

    rows = read_rows(Path(job["rows"]), PreferencePair)
    names = ("prompt", "chosen", "rejected")
    return Dataset.from_list([{name: for_template(getattr(row, name)) for name in names} for row in rows])


def dpo_trl(job: Job, **keys: object) -> Values:
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = load_for_trl(job)
    # The rows were drawn in this order.
    config = trl_config(DPOConfig, job, train_sampling_strategy="sequential", **keys)
    counts = job.get("reports_steps", False)
    with watching(counts_passes=counts) as watch:  # the trainer computes the reference log-probs when it is constructed
        DPOTrainer(model, args=config, train_dataset=pairs_for_trl(job), processing_class=tokenizer).train()
    return training_values(watch, job)


def reward_trl(job: Job) -> Values:
    from trl import RewardConfig, RewardTrainer

    model, tokenizer = load_for_trl(job, is_reward_model=True)
    config = trl_config(RewardConfig, job, train_sampling_strategy="sequential")
    with watching(counts_passes=job.get("reports_steps", False)) as watch:
        RewardTrainer(model, args=config, train_dataset=pairs_for_trl(job), processing_class=tokenizer).train()
    return training_values(watch, job)


def sft_trl(job: Job, *, packing: bool = False) -> Values:
    """TRL's SFT on our tokens and labels, so that both sides train the same tokens of the same dialogs."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from data_schemas.reading import read_rows
    from data_schemas.rows import Conversation
    from stages import sft

    model, tokenizer = load_for_trl(job)
    encode, _ = sft.encoder(tokenizer, sft.SFTArguments(train_data=[]))
    rows = [encoded for row in read_rows(Path(job["rows"]), Conversation) for encoded in encode(row)]
    keys: dict[str, object] = {"train_sampling_strategy": "sequential"}
    if packing:  # as many tokens a step as the padded rows have, which are about as many dialogs
        keys = {"packing": True, "per_device_train_batch_size": 2, "max_steps": -1, "num_train_epochs": 1}
    config = trl_config(SFTConfig, job, **keys)
    with watching(counts_passes=job.get("reports_steps", False)) as watch:
        SFTTrainer(
            model,
            args=config,
            train_dataset=Dataset.from_list([row.columns() for row in rows]),
            processing_class=tokenizer,
        ).train()
    tokens = sum(label != -100 for row in rows for label in row.labels)
    return training_values(watch, job) | {"tokens": tokens}
