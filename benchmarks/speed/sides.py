"""The sides of the speed benchmark, each run in a separate process.

    python -m benchmarks.speed.sides dpo-ours JOB    # JOB: JSON with base, folder, rows, …

It prints its result as one line of JSON. Our sides are the unchanged stages with the keys of a command line. The others
are TRL's trainers as its commands build them, with the same rows, weights, precision, batch and learning rate, and
TRL's defaults otherwise.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.instruments import watching
from benchmarks.speed.sampling_sides import sampling_generate, sampling_ours
from benchmarks.speed.training_sides import (
    DPO_KEYS,
    Job,
    Values,
    dpo_trl,
    reward_trl,
    run_as_stage,
    sft_trl,
    stage_keys,
    train_ours,
)


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
