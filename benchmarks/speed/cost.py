"""Measures what the stages' safety measures cost in training, compared with plain TRL on the same steps.

    python -m benchmarks.speed.cost --base_model DIR        # any small causal model; the docs use SmolLM2-135M

Both sides train the same weights on the same rows with the same keys, each in a separate process, in turn: A B B A A B
…. The plain side is TRL's trainer with its checkpoints and evaluations at the same steps. Our side is the stage, with
exact evaluation, guards on every step, checkpoints that are hashed and synced, and a check that the saved model loads
again. Imports, loading and tokenization are excluded on both sides.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = ("plain", "ours")


def rows(number: int, *, words: int) -> list[dict[str, Any]]:
    """`number` different dialogs with about `words` words an answer."""
    text = "the river runs to the sea and nobody asks why it does so every day of the year".split()
    answers = [" ".join(text[(n + i) % len(text)] for i in range(words)) for n in range(number)]
    return [
        {
            "messages": [
                {"role": "user", "content": f"Tell me about river number {n}."},
                {"role": "assistant", "content": f"{n} {answer}"},
            ]
        }
        for n, answer in enumerate(answers)
    ]


def train(side: str, model: str, folder: Path, *, steps: int, batch: int, words: int) -> float:
    """Trains one side in this process. Returns the seconds from the first step to the end of saving."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import ModelConfig, SFTConfig, SFTTrainer

    from data_schemas.rows import Conversation
    from engine.models.loading import load_causal
    from engine.runtime.stage import Stage
    from engine.runtime.tracking import Tracker
    from engine.training.run import train_and_save
    from stages import sft

    tokenizer = AutoTokenizer.from_pretrained(model)
    keys = sft.SFTArguments(train_data=[], global_batch_size=batch)
    encode, _ = sft.encoder(tokenizer, keys)
    data = [encode(Conversation.model_validate(row))[0].columns() for row in rows(batch * steps + 16, words=words)]
    held_out, trained = Dataset.from_list(data[:16]), Dataset.from_list(data[16:])
    config = SFTConfig(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        learning_rate=1e-5,
        bf16=False,
        use_cpu=True,
        report_to=[],
        activation_checkpointing=False,
        eval_strategy="steps",
        eval_steps=steps // 2,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=steps // 2,
        save_total_limit=1,
        logging_steps=1,
        disable_tqdm=True,
        max_length=None,
        seed=1,
    )
    torch.manual_seed(1)
    if side == "plain":
        trainer = SFTTrainer(
            load_causal(model, dtype="float32"),
            args=config,
            train_dataset=trained,
            eval_dataset=held_out,
            processing_class=tokenizer,
        )
        started = time.perf_counter()
        trainer.train()
        trainer.save_model(str(folder / "model"))
        return time.perf_counter() - started
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ModelConfig(model_name_or_path=model)
    stage = Stage("sft", folder, {}, Tracker(folder, active=True), is_main=True)
    ours = sft.make_trainer(stage, keys, config, arguments, tokenizer, trained, held_out)
    started = time.perf_counter()
    train_and_save(ours, arguments)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base_model", required=True, help="a model folder with a chat template and a separate pad token"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        with tempfile.TemporaryDirectory() as folder:
            seconds = train(
                arguments.side,
                arguments.base_model,
                Path(folder) / "out",
                steps=arguments.steps,
                batch=arguments.batch,
                words=arguments.words,
            )
        print(json.dumps(seconds))
        return
    seconds_of: dict[str, list[float]] = {side: [] for side in SIDES}
    for pair in range(arguments.pairs):
        for side in SIDES if pair % 2 == 0 else SIDES[::-1]:
            command = [sys.executable, "-m", "benchmarks.speed.cost", *sys.argv[1:], "--side", side]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds_of[side].append(float(done.stdout.splitlines()[-1]))
            print(f"{side:<6} {seconds_of[side][-1]:7.1f} s", flush=True)
    ratios = [ours / plain for plain, ours in zip(seconds_of["plain"], seconds_of["ours"], strict=True)]
    print(
        f"ours / plain: median {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f}), "
        f"{arguments.steps} steps of {arguments.batch} rows, 3 evaluations, 2 checkpoints"
    )


if __name__ == "__main__":
    main()
