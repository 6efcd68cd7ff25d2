"""Averages models that one stage trained with different hyperparameters or data; the average replaces them.

As in Llama 3 (arXiv 2407.21783, 4.1.5) for reward models, SFT and DPO. The paper does not give the weights: here they
are equal, given, or found greedily (model soups, arXiv 2203.05482, recipe 1); slerp is for two models. The average and
each of its parts are evaluated on the same held-out rows with the training stage's own loss. Policies of different
rounds (WARP, arXiv 2406.16768) have no `averaged_stage` in common and are not evaluated here.

    accelerate launch stages/average_models.py --config configs/stages/average_models.yaml --weights greedy
"""

import dataclasses
import gc
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from data_schemas.errors import StageError
from data_schemas.files import digest_text
from data_schemas.stage_keys import Keys, StageTraits, check_keys
from engine.curation.pair_selection import all_pairs
from engine.models.averaging import check_same_architecture, greedy_weights, normalised, write_average, write_slerp
from engine.models.loading import load_tokenizer, read_config
from engine.models.merging import plain_folder
from engine.models.verification import check_weights
from engine.runtime import progress
from engine.runtime.arguments import LoadingArguments
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.runtime.world import wait_until_exists
from engine.tokens.contract import contract_of
from engine.tokens.positions import max_positions
from engine.tokens.tables import held_out_rows
from engine.training.method import Method
from stages.dpo import METHOD as DPO
from stages.reward_model import METHOD as REWARD_MODEL
from stages.sft import METHOD as SFT

RECIPE_VERSION = 2
EXAMPLE = "accelerate launch stages/average_models.py --config configs/stages/average_models.yaml --weights greedy"
TRAITS = StageTraits(
    purpose="Averages the weights of a section's variants.",
    position=80,
    kind="transforms",
    runs="by_plan",
    headlines=["eval_loss", "eval_accuracy", "eval_rewards/accuracies"],
)
METHODS: dict[str, Method] = {"sft": SFT, "reward_model": REWARD_MODEL, "dpo": DPO}
# Keys of every evaluation: the parts are plain models, their adapters merged.
PLAIN = {
    "use_peft": False,
    "at_end": "merge",
    "load_in_4bit": False,
    "load_in_8bit": False,
    "activation_checkpointing": False,
    "report_to": "none",
}
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AverageModelsArguments(LoadingArguments):
    models: list[str] = required_field("folders of the models to average", role="model")
    averaged_stage: Literal["sft", "reward_model", "dpo"] | None = key_field(
        None, "the stage that trained them, by whose loss they are evaluated; null: they are not"
    )
    weights: str | list[float] = key_field("uniform", "uniform, greedy (by eval loss), or a number a model", minimum=0)
    method: Literal["linear", "slerp"] = key_field("linear", "weighted mean, or the arc between two models")
    fraction: float = key_field(
        0.5, "slerp: how far along the arc from the first model to the second", minimum=0, maximum=1
    )
    eval_data: list[str] | None = key_field(None, "files of held-out rows", role="rows")
    train_data: list[str] | None = key_field(
        None, "files of training rows, of which validation_share is held out where there is no eval_data", role="rows"
    )
    reference_model: str | None = key_field(None, "dpo: the reference policy of the evaluation", role="model")
    stage_keys: dict = key_field({}, "keys of averaged_stage for the evaluation: max_length, beta, bf16, …")
    part_names: list[str] | None = key_field(None, "the models' names in the record; null: 1, 2, …", role="runtime")
    per_device_eval_batch_size: int = key_field(
        8, "rows a batch of the evaluation", role="runtime", minimum=1, maximum=10**6
    )


ARGUMENTS = (AverageModelsArguments,)


class Evaluation:
    """The training stage's evaluation of one model after another, on rows that are read and tokenized once."""

    def __init__(self, stage: Stage, arguments: AverageModelsArguments) -> None:
        averaged_stage = arguments.averaged_stage
        assert averaged_stage, "without it nothing is evaluated"
        self.stage, self.method = stage, METHODS[averaged_stage]
        given = check_keys(averaged_stage, arguments.stage_keys, where=f"{stage.name}: stage_keys")
        self.values = (
            {"seed": arguments.seed}
            | given
            | PLAIN
            | {
                "output_dir": str(stage.folder / "checkpoints" / "evaluation"),
                "train_data": arguments.train_data or [],
                "eval_data": arguments.eval_data,
                "reference_model": arguments.reference_model,
                "use_cpu": arguments.use_cpu,
                "per_device_eval_batch_size": arguments.per_device_eval_batch_size,
            }
        )
        self.tokenizer = load_tokenizer(arguments.models[0])
        training_arguments, training, _ = self.method.fill(self._values_for(arguments.models[0]))
        rows = held_out_rows(stage, training_arguments, self.method.read)
        if given.get("ranking_pairs") == "all":
            rows = [pair for row in rows for pair in all_pairs(row)]
        self.rows = self.method.tokenize(
            stage,
            "eval",
            rows,
            self.tokenizer,
            training_arguments,
            max_length=training.max_length,
            max_positions=max_positions(read_config(arguments.models[0])),
        ).rows

    def _values_for(self, folder: Path | str) -> Keys:
        return self.values | {"model_name_or_path": str(folder)}

    def __call__(self, folder: Path | str) -> dict[str, float]:
        """eval_loss and the training stage's other metrics of one model. All processes call this."""
        # TRL's trainers require training rows; nothing is trained on them.
        trainer = self.method.make_trainer(
            self.stage, *self.method.fill(self._values_for(folder)), self.tokenizer, self.rows, self.rows
        )
        metrics = trainer.evaluate_once()
        trainer.accelerator.free_memory()
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.info("%s: eval_loss %.4f", folder, metrics["eval_loss"])
        return metrics


@progress.activity("averaging the models")
def make_average(stage: Stage, arguments: AverageModelsArguments, weights: Sequence[float]) -> Path:
    """The folder of the average with these weights: the first process writes it, the others wait for it."""
    identity = json.dumps([list(weights), arguments.method, arguments.fraction])
    path = stage.folder / "checkpoints" / f"average-{digest_text(identity)[:16]}"
    if stage.is_main and not path.exists():
        folders = [Path(folder) for folder in arguments.models]
        if arguments.method == "slerp":
            write_slerp(folders[0], folders[1], path, fraction=arguments.fraction)
        else:
            write_average(folders, path, weights=weights)
    wait_until_exists(path)
    return path


def choose_weights(
    stage: Stage, arguments: AverageModelsArguments, evaluate: Evaluation | None, losses: Sequence[float]
) -> list[float]:
    """One weight a model, sum 1; `losses` are the models' own. The greedy ones are found by evaluating averages."""
    if arguments.method == "slerp":
        return [1 - arguments.fraction, arguments.fraction]
    if isinstance(arguments.weights, list):
        return normalised(arguments.weights)
    if evaluate is not None and arguments.weights == "greedy":
        return greedy_weights(losses, lambda weights: evaluate(make_average(stage, arguments, weights))["eval_loss"])
    return normalised([1.0] * len(arguments.models))


def with_plain_models(stage: Stage, arguments: AverageModelsArguments) -> AverageModelsArguments:
    """The arguments with complete models: the mean of two adapters is not the adapter of the mean, as each is a product
    of two matrices."""
    checkpoints = stage.folder / "checkpoints"
    models = [plain_folder(folder, checkpoints, writes=stage.is_main) for folder in arguments.models]
    return dataclasses.replace(arguments, models=models)


def main(stage: Stage, arguments: AverageModelsArguments) -> StageResult:
    if stage.is_main:  # those of an interrupted attempt may be incomplete
        for leftover in stage.folder.glob("checkpoints/average-*"):
            shutil.rmtree(leftover)
    arguments = with_plain_models(stage, arguments)
    check_same_architecture([Path(folder) for folder in arguments.models])
    evaluate = Evaluation(stage, arguments) if arguments.averaged_stage else None
    losses = [evaluate(folder)["eval_loss"] for folder in arguments.models] if evaluate else []

    weights = choose_weights(stage, arguments, evaluate, losses)
    # Without an evaluation nothing holds the first process until the others have seen the folder.
    average = make_average(stage, arguments, weights) if evaluate or stage.is_main else None
    metrics = evaluate(average) if evaluate and average else {}
    if evaluate and not math.isfinite(metrics["eval_loss"]):
        raise StageError("the average's eval_loss is nan or infinite")

    names = arguments.part_names or [str(number) for number in range(1, len(weights) + 1)]
    metrics |= {f"eval_loss_of_{name}": loss for name, loss in zip(names, losses, strict=False)}
    metrics |= {f"weight_of_{name}": weight for name, weight in zip(names, weights, strict=True)}
    if stage.is_main and average:
        shutil.rmtree(stage.folder / "model", ignore_errors=True)
        average.rename(stage.folder / "model")
        check_weights(stage.folder / "model")
    contract = contract_of(load_tokenizer(arguments.models[0]))
    return StageResult(outputs={"model": "model"}, metrics={**metrics}, contract=contract)


if __name__ == "__main__":
    run_stage("average_models", ARGUMENTS, main)
