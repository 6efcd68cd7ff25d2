"""Reinforcement learning of a policy: GRPO (arXiv 2402.03300) or RLOO (arXiv 2402.14740), with TRL's losses.

In each window the policy answers prompts, K answers to each, and rewards score them: a reward model, functions, or
both. Several guards keep the policy from exploiting a reward: a bounded reward (PAR, arXiv 2502.18770), a budget of KL
divergence from the reference, and penalties for answers that do not end. The model with the highest reward on held-out
prompts is saved, that of step 0 included.

    accelerate launch stages/rl.py --config configs/stages/rl.yaml --learning_rate 1e-6
"""

import logging
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from data_schemas.errors import ConfigError, DataError
from data_schemas.reading import read_prompts
from data_schemas.rows import Prompt
from data_schemas.stage_keys import StageTraits
from engine.judging.shared_scoring import ScoringSettings
from engine.models.loading import load_tokenizer, path_of, training_options
from engine.models.lora import adapters_of, describe_adapter, load_policy, reference_options
from engine.reinforcement.arguments import PolicyGradientConfig, RLArguments
from engine.reinforcement.log_probs import Reference
from engine.reinforcement.rewards import make_rewards
from engine.reinforcement.schedule import Schedule
from engine.reinforcement.trainer import GRPOLoopTrainer, PolicyGradientTrainer, RLOOLoopTrainer
from engine.reinforcement.vllm_rollouts import ServedWeights
from engine.runtime import progress, world
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.runtime.world import device_of
from engine.sampling.answers import SamplingSettings
from engine.tokens.tables import check_contract, split_rows
from engine.tokens.template import encode_prompt
from engine.training import loop as training_loop
from engine.training.run import train_and_save

RECIPE_VERSION = 1
EXAMPLE = "accelerate launch stages/rl.py --config configs/stages/rl.yaml --learning_rate 1e-6"
TRAITS = StageTraits(
    purpose="Trains a policy by reinforcement learning: its answers are scored by rewards.",
    position=75,
    kind="trains",
    in_every_round=False,
    headlines=["eval_reward", "eval_kl"],
    summary_columns={"rl_reward": "eval_reward", "rl_kl": "eval_kl"},
)
DEFAULTS = training_loop.DEFAULTS | {"max_completion_length": 256}  # TRL's config has no default
ARGUMENTS = (RLArguments, PolicyGradientConfig, ModelConfig)
log = logging.getLogger(__name__)


def check_launch() -> None:
    """Raises ConfigError under FSDP: processes sample different numbers of tokens, but each forward pass would gather
    the divided weights from all of them, so they would wait for each other forever."""
    if world.is_fsdp_asked_for():
        raise ConfigError("rl samples answers from the weights in memory, which FSDP divides; use profile ddp or zero3")


def read_both_sides(
    stage: Stage, arguments: RLArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Prompt], list[Prompt], int]:
    """Training prompts, held-out prompts, and the number of those that were too long. Raises DataError where no prompt
    is left."""
    longest = arguments.max_prompt_tokens
    sides = split_rows(stage, arguments, read_prompts)
    kept = [
        [
            row
            for row in rows
            if longest is None or len(encode_prompt(tokenizer, row.prompt, tools=row.tools)) <= longest
        ]
        for rows in sides
    ]
    if not all(kept):
        raise DataError(
            f"no {'held-out' if kept[0] else 'training'} prompt has at most max_prompt_tokens={longest} tokens; "
            "raise it, or leave it out"
        )
    return kept[0], kept[1], sum(map(len, sides)) - sum(map(len, kept))


def prepare_config(training: PolicyGradientConfig, arguments: RLArguments) -> None:
    """Sets, in place, what the stage needs in TRL's config; called before the trainer is constructed."""
    training.report_to = []  # the stage's own tracker logs
    training.eval_on_start = False
    training.load_best_model_at_end = False
    training.remove_unused_columns = False
    training.beta = 0.0  # else TRL loads a reference by the name of the policy's folder
    training.reward_weights = None  # those of our own rewards
    training.normalize_advantages = arguments.normalize_advantages
    # TRL counts micro-batches between two times that answers are sampled; its loss "dapo" reads it.
    training.steps_per_generation = training.gradient_accumulation_steps * arguments.steps_per_window


def make_trainer(
    stage: Stage,
    arguments: RLArguments,
    training: PolicyGradientConfig,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Prompt],
    held_out: list[Prompt],
) -> PolicyGradientTrainer:
    """Loads the models and constructs the trainer. Changes `training` in place."""
    path = path_of(model)
    schedule = Schedule(
        num_prompts=len(train),
        num_generations=arguments.num_generations,
        global_batch_size=arguments.global_batch_size,
        steps_per_window=arguments.steps_per_window,
        num_iterations=training.num_iterations,
        seed=training.seed,
        round=arguments.round,
    )
    scoring = ScoringSettings(device_of(training.use_cpu), "auto", arguments.generation_batch_size)
    rewards = make_rewards(stage, arguments, tokenizer, scoring)
    prepare_config(training, arguments)
    policy = load_policy(model)
    adapters = adapters_of(model, policy, tokenizer)
    sampling = SamplingSettings(
        seed=f"{training.seed}/{stage.name}/{arguments.round}",
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        max_new_tokens=arguments.max_completion_length,
        dtype=_sampling_dtype(arguments, training, policy.dtype),
        batch_size=arguments.generation_batch_size,
        engine=arguments.engine,
        vllm=arguments.vllm,
        use_cpu=training.use_cpu,
    )
    reference_path = arguments.reference_model or path
    tokens = [encode_prompt(tokenizer, prompt.prompt, tools=prompt.tools) for prompt in held_out]
    trainer_class = RLOOLoopTrainer if arguments.algorithm == "rloo" else GRPOLoopTrainer
    return trainer_class(
        policy,
        args=training,
        train_dataset=Dataset.from_dict({"answer": list(range(schedule.rows_per_epoch))}),
        eval_dataset=Dataset.from_dict({"prompt_ids": tokens}),
        processing_class=tokenizer,
        adapters=adapters,
        stage=stage,
        stage_arguments=arguments,
        schedule=schedule,
        rewards=rewards,
        reference=Reference(
            reference_path,
            # Without a continued adapter the policy would be the adapter's base, not the reference.
            is_start=adapters.continued is None and Path(reference_path).resolve() == Path(path).resolve(),
            options=reference_options(reference_path, training_options(model)),
        ),
        train_prompts=train,
        eval_prompts=held_out,
        sampling=sampling,
        served=ServedWeights(stage, tokenizer, sampling, policy.config, folder=Path(str(training.output_dir)))
        if arguments.engine == "vllm"
        else None,
        describe_adapter=lambda trained, folder: describe_adapter(trained, model, folder, continued=adapters.continued),
    )


def _sampling_dtype(arguments: RLArguments, training: PolicyGradientConfig, weights: torch.dtype) -> str:
    """The precision in which answers are sampled: of vLLM that in which the policy computes."""
    if arguments.engine == "transformers":
        return "auto"
    mixed = "bfloat16" if training.bf16 else "float16" if training.fp16 else ""
    return mixed or str(weights).removeprefix("torch.")


def main(stage: Stage, arguments: RLArguments, training: PolicyGradientConfig, model: ModelConfig) -> StageResult:
    check_launch()
    tokenizer = load_tokenizer(path_of(model))
    check_contract(tokenizer, path_of(model), arguments)
    with progress.activity("reading rows"):
        train, held_out, num_too_long = read_both_sides(stage, arguments, tokenizer)
    trainer = make_trainer(stage, arguments, training, model, tokenizer, train, held_out)
    try:
        return train_and_save(trainer, model, metrics={"dropped_too_long": num_too_long})
    finally:
        trainer.policy_sampler.close()


if __name__ == "__main__":
    run_stage("rl", ARGUMENTS, main, defaults=DEFAULTS)
