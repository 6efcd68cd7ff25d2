"""The reward model: Bradley-Terry on preference pairs, -log sigmoid(r_chosen - r_rejected), from the pretrained base.

As in Llama 3 (arXiv 2407.21783, 4.1.2), without a margin term; one score head on the base, read at the end token. The
head starts with standard deviation 1/sqrt(d + 1) (Tülu 3, arXiv 2411.15124). A ranking of n answers is one row: all its
n (n - 1) / 2 pairs in one step, divided by their number (InstructGPT, arXiv 2203.02155, eq. 1), so a prompt weighs the
same whatever the length of its ranking. Each answer is a sequence of its own, where Llama 3 concatenates them.

    accelerate launch stages/reward_model.py --config configs/stages/reward_model.yaml
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, RewardConfig

from data_schemas.reading import read_pairs
from data_schemas.rows import PreferencePair
from data_schemas.stage_keys import StageTraits
from engine.curation.pair_selection import select_pairs
from engine.models.loading import is_reward_model, load_reward, load_tokenizer, path_of, training_options
from engine.models.lora import lora_config
from engine.runtime.arguments import PreferenceArguments
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.tokens.inspection import Encode
from engine.tokens.tables import check_contract, split_rows, tokenize
from engine.tokens.template import encode_answer
from engine.tokens.token_rows import TokenRanking
from engine.training.loop import DEFAULTS, prepare_config, train_and_save
from engine.training.reward import BradleyTerryTrainer, RankingCollator, initialise_head

RECIPE_VERSION = 4
EXAMPLE = "accelerate launch stages/reward_model.py --config configs/stages/reward_model.yaml --learning_rate 1e-5"
TRAITS = StageTraits(
    purpose="Trains a reward model on preference pairs and rankings.",
    position=40,
    kind="trains",
    has_variants=True,
    preload=True,
    headlines=["eval_accuracy", "eval_loss"],
    summary_columns={"reward_accuracy": "eval_accuracy"},
)

# Shapes: B = rankings in the batch, A = their answers one after the other, P = their pairs, T = tokens.


@dataclass(kw_only=True)
class RewardModelArguments(PreferenceArguments):
    pass


ARGUMENTS = (RewardModelArguments, RewardConfig, ModelConfig)
read = read_pairs


def encoder(tokenizer: PreTrainedTokenizerBase, arguments: RewardModelArguments) -> tuple[Encode[PreferencePair], str]:
    """What a ranking is in tokens, and the name of this way of doing it."""

    def encode(row: PreferencePair) -> TokenRanking:
        both = [encode_answer(tokenizer, row.prompt, answer, tools=row.tools) for answer in row.ranking]
        return TokenRanking(answers=[prompt_ids + answer_ids for prompt_ids, answer_ids in both])

    return encode, "reward_model-2"


def read_rows(
    stage: Stage, arguments: RewardModelArguments, *, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair], dict[str, int]]:
    """Training rows, held-out rows, and how many were dropped by reason. `seed` draws nothing here."""
    train, held_out = split_rows(stage, arguments, read)
    train, dropped = select_pairs(stage, arguments, train)
    return train, held_out, dropped


def make_trainer(
    arguments: RewardModelArguments,
    training: RewardConfig,
    model: ModelConfig,
    tokenizer: Any,
    train: Any,
    held_out: Any,
) -> BradleyTerryTrainer:
    prepare_config(training)
    reward_model = load_reward(path_of(model), **training_options(model))
    reward_model.config.pad_token_id = tokenizer.pad_token_id
    if not is_reward_model(path_of(model)):
        initialise_head(reward_model, seed=training.seed)
    return BradleyTerryTrainer(
        reward_model,
        args=training,
        data_collator=RankingCollator(tokenizer.pad_token_id, arguments.share_prompts),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=lora_config(model, is_reward_model=True),
    )


def main(stage: Stage, arguments: RewardModelArguments, training: RewardConfig, model: ModelConfig) -> StageResult:
    tokenizer = load_tokenizer(path_of(model))
    check_contract(tokenizer, path_of(model), arguments)
    train, held_out, dropped = read_rows(stage, arguments, seed=training.seed)
    encode, version = encoder(tokenizer, arguments)
    tables = [
        tokenize(
            stage,
            side,
            rows,
            encode,
            tokenizer,
            version=version,
            max_length=training.max_length,
            on_long_row=arguments.on_long_row,
        )
        for side, rows in (("train", train), ("eval", held_out))
    ]
    trainer = make_trainer(arguments, training, model, tokenizer, *tables)
    return train_and_save(stage, trainer, arguments, model, is_reward_model=True, metrics=dropped)


if __name__ == "__main__":
    run_stage("reward_model", ARGUMENTS, main, defaults=DEFAULTS)
