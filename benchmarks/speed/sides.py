"""The sides of the speed benchmark, each run in a separate process.

    python -m benchmarks.speed.sides dpo-ours JOB    # JOB: JSON with base, folder, rows, …

It prints its result as one line of JSON. Our sides are the unchanged stages with the keys of a command line. The others
are TRL's trainers as its commands build them, with the same rows, weights, precision, batch and learning rate, and
TRL's defaults otherwise.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed.instruments import Watch, watching

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Values = dict[str, Any]
Job = Values  # what a side is given


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


DPO_KEYS = {"loss_type": ["sigmoid"], "loss_weights": [1.0], "mask_formatting": False}  # TRL's loss


def prompts_of_call(prompts: Sequence[list[int]], run: int) -> Sequence[list[int]]:
    """The eight prompts of the call that is made in this run, of all calls in the order of the file."""
    calls = [prompts[start : start + 8] for start in range(0, len(prompts), 8)]
    widths = [max(map(len, call)) for call in calls]
    mean = sum(widths) / len(widths)
    nearest = sorted(range(len(calls)), key=lambda call: abs(widths[call] - mean))
    return calls[nearest[run % len(calls)]]


def sampling_generate(job: Job) -> Values:
    """generate() on 8 prompts a call in the order of the file, each with all its answers.

    Calls are independent of one another, so each run makes only one. The first run makes the call whose width is
    nearest to the mean, the second run the next nearest.
    """
    import torch

    from data_schemas.reading import read_rows
    from data_schemas.rows import Prompt
    from engine.models.loading import load_causal, load_tokenizer
    from engine.runtime.process import use_all_cores
    from engine.sampling.answers import end_tokens
    from engine.tokens.template import encode_prompt

    use_all_cores()
    torch.manual_seed(1)
    tokenizer, model = load_tokenizer(job["base"]), load_causal(job["base"], dtype=job["dtype"]).eval()
    pad: Any = tokenizer.pad_token_id
    ends, answers = end_tokens(model, tokenizer), []
    prompts = [encode_prompt(tokenizer, row.prompt) for row in read_rows(Path(job["rows"]), Prompt)]
    with watching() as watch, torch.no_grad():
        rows = prompts_of_call(prompts, job["run"])
        width = max(map(len, rows))
        output = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=torch.tensor([[pad] * (width - len(row)) + row for row in rows]),
            attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
            num_return_sequences=job["answers"],
            do_sample=True,
            temperature=job["temperature"],
            top_k=0,
            top_p=1.0,
            max_new_tokens=job["max_new_tokens"],
            eos_token_id=sorted(ends),
            pad_token_id=pad,
        )
        for row in output[:, width:].tolist():
            end = next((index for index, token in enumerate(row) if token in ends), len(row) - 1)
            answers.append((tokenizer.decode(row[: end + 1], skip_special_tokens=True), end + 1))
    return {
        "seconds": watch.seconds,
        "rows": len(answers),
        "tokens": sum(length for _, length in answers),
        "dtype": job["dtype"],
    }


def sampling_ours(job: Job) -> Values:
    from data_schemas.reading import read_rows
    from data_schemas.rows import Prompt
    from engine.runtime.process import keep_memory, use_all_cores
    from engine.runtime.stage import Stage
    from engine.runtime.tracking import Tracker
    from engine.sampling.answers import Policy, SamplingSettings
    from engine.sampling.sampler import sample_in_turn
    from stages.rejection_sampling import RejectionSamplingArguments

    use_all_cores()
    keep_memory()
    folder = Path(job["folder"])
    prompts = [(row, None) for row in read_rows(Path(job["rows"]), Prompt)]
    arguments = RejectionSamplingArguments(
        prompts=[job["rows"]],
        policies=[job["base"]],
        reward_model="",
        seed=1,
        use_cpu=True,
        dtype=job["dtype"],
        temperature=job["temperature"],
        max_new_tokens=job["max_new_tokens"],
        num_answers=job["answers"],
        generation_batch_size=job["generation_batch_size"],
    )
    stage = Stage("rejection_sampling", folder, {}, Tracker(folder, active=False), is_main=True)
    settings, policies = SamplingSettings.of(arguments, purpose="bench"), [Policy(job["base"], "base")]
    with watching() as watch:
        groups = sample_in_turn(stage, policies, prompts, settings, num_answers=job["answers"])
    answers = [answer for group in groups for answer in group]
    return {
        "seconds": watch.seconds,
        "rows": len(answers),
        "tokens": sum(len(answer.ids) for answer in answers),
        "dtype": job["dtype"],
    }


def prepare(job: Job) -> Values:
    from benchmarks.speed import samples

    return samples.prepare(job)


def arithmetic(job: Job) -> Values:
    """Times steps of our DPO, and products of its shapes before and after each, since a machine's speed varies.

    `passes` are the numbers of reference passes of this run, and of a later one with another beta and seed.
    """
    from benchmarks.speed import flops

    counted, untimed, peaks = flops.measure(job), job["untimed_steps"], []

    def measure_peaks() -> None:
        peaks.append(flops.peaks(counted["shapes"], counted["dtypes"], job["repeats"]))

    measure_peaks()
    keys = stage_keys("dpo", job | {"steps": untimed + job["timed_steps"]}, **DPO_KEYS)
    with watching(counts_passes=True, between=measure_peaks) as watch:
        run_as_stage("dpo", Path(job["folder"]) / "first", keys)
    with watching(counts_passes=True) as second:
        run_as_stage("dpo", Path(job["folder"]) / "second", stage_keys("dpo", job, **DPO_KEYS, beta=0.3) | {"seed": 2})
    passes = [watched.reference_passes() for watched in (watch, second)]
    return counted | {"steps": watch.steps[untimed:], "peaks": peaks[untimed:], "passes": passes}


def write_random_model(job: Job) -> Values:
    """Writes a Llama with random weights and the base's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from engine.models.loading import load_tokenizer

    tokenizer: Any = load_tokenizer(job["base"])
    torch.manual_seed(1)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad")}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, tie_word_embeddings=True, **ids, **job["sizes"])
    )
    model.save_pretrained(job["folder"])
    tokenizer.save_pretrained(job["folder"])
    return {"parameters": model.num_parameters()}


def grid_rows(job: Job) -> Values:
    """Writes random pairs. Returns the tokens of all their sequences, without padding."""
    from benchmarks.speed.samples import write_random_pairs
    from data_schemas.reading import read_rows
    from data_schemas.rows import PreferencePair
    from engine.models.loading import load_tokenizer
    from stages import dpo

    path = Path(job["folder"]) / "pairs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_random_pairs(path, length=job["length"], number=job["number"])
    write_random_pairs(path.with_name("held_out.jsonl"), length=16, number=2)
    encode, _ = dpo.encoder(load_tokenizer(job["base"]), dpo.DPOArguments(train_data=[], mask_formatting=False))
    encoded = [encode(row)[0] for row in read_rows(path, PreferencePair)]
    return {"tokens": sum(len(row.prompt_ids) * 2 + len(row.chosen_ids) + len(row.rejected_ids) for row in encoded)}


SIDES: dict[str, Callable[[Job], Values]] = {
    "prepare": prepare,
    "dpo-ours": lambda job: train_ours("dpo", job, **DPO_KEYS),
    "dpo-trl": dpo_trl,
    "dpo-trl-grouped": lambda job: dpo_trl(job, precompute_ref_log_probs=True),
    "reward-ours": lambda job: train_ours("reward_model", job),
    "reward-trl": reward_trl,
    "sft-ours": lambda job: train_ours("sft", job),
    "sft-trl": sft_trl,
    "sft-trl-packed": lambda job: sft_trl(job, packing=True),
    "sampling-ours": sampling_ours,
    "sampling-generate": sampling_generate,
    "arithmetic": arithmetic,
    "random-model": write_random_model,
    "grid-rows": grid_rows,
}


def main() -> None:
    name, job = sys.argv[1], json.loads(sys.argv[2])
    from engine.runtime.process import end_with_the_runner

    end_with_the_runner()
    print(json.dumps(SIDES[name](job)), flush=True)


if __name__ == "__main__":
    main()
