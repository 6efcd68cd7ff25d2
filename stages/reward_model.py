"""The reward model: Bradley-Terry on preference pairs, -log sigmoid(r_chosen - r_rejected), from the pretrained base.

As in Llama 3 (arXiv 2407.21783, 4.1.2), without a margin term, which `level_margins` adds; one score head on the base,
read at the end token. The head starts with standard deviation 1/sqrt(d + 1) (Tülu 3, arXiv 2411.15124). A ranking of n
answers is one row: all its n (n - 1) / 2 pairs train in one step and their loss is divided by their number
(InstructGPT, arXiv 2203.02155, eq. 1), so a prompt has the same weight for any number of answers. Each answer is a
separate sequence; Llama 3 concatenates them.

    accelerate launch stages/reward_model.py --config configs/stages/reward_model.yaml
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, RewardConfig

from data_schemas.reading import read_pairs
from data_schemas.rows import STRENGTHS, PreferencePair
from data_schemas.stage_keys import StageTraits
from engine.curation.pair_selection import select_pairs
from engine.models.loading import is_reward_model, load_reward, path_of, training_options
from engine.models.lora import adapters_of
from engine.runtime import notices
from engine.runtime.arguments import PreferenceArguments
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.tokens.inspection import Encode
from engine.tokens.tables import split_rows
from engine.tokens.template import encode_answer
from engine.tokens.token_rows import TokenRanking
from engine.training.loop import DEFAULTS, prepare_config
from engine.training.method import Method, SplitRows, pad_token_of
from engine.training.reward import BradleyTerryTrainer, RankingCollator, initialise_head

RECIPE_VERSION = 5
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
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RewardModelArguments(PreferenceArguments):
    level_margins: list[float] | None = key_field(
        None,
        "margins that training subtracts from a reward difference, for significantly better, better, slightly better "
        "and marginally better, as in [1.0, 0.67, 0.33, 0.0] (Llama 2, arXiv 2307.09288, eq. 2); null: none",
        minimum=0,
        maximum=1e6,
        omitted_at_default=True,
    )


ARGUMENTS = (RewardModelArguments, RewardConfig, ModelConfig)


def encoder(tokenizer: PreTrainedTokenizerBase, arguments: RewardModelArguments) -> tuple[Encode[PreferencePair], str]:
    """The function that tokenizes a ranking, and its version."""

    margins = arguments.level_margins

    def encode(row: PreferencePair) -> list[TokenRanking]:
        both = [encode_answer(tokenizer, row.prompt, answer, tools=row.tools) for answer in row.ranking]
        answers = [prompt_ids + answer_ids for prompt_ids, answer_ids in both]
        return [TokenRanking(answers, [margin_of(row, margins)] if margins else [])]

    return encode, f"reward_model-3 {margins=}"


def margin_of(row: PreferencePair, margins: Sequence[float]) -> float:
    """The margin of the best answer over the worst, in reward units; 0 where the row has no strength."""
    return margins[STRENGTHS.index(row.strength)] if row.strength else 0.0


def read_rows(stage: Stage, arguments: RewardModelArguments, *, seed: int) -> SplitRows[PreferencePair]:
    """The rankings that train and those held out; `seed` is not used."""
    train, held_out = split_rows(stage, arguments, read_pairs)
    train, dropped = select_pairs(stage, arguments, train)
    if arguments.level_margins and not any(row.strength for row in train):
        notices.warn(log, "level_margins changes nothing: none of %d training pairs has a strength", len(train))
    return SplitRows(train, held_out, dropped)


def make_trainer(
    stage: Stage,
    arguments: RewardModelArguments,
    training: RewardConfig,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    held_out: Dataset,
) -> BradleyTerryTrainer:
    prepare_config(training)
    reward_model = load_reward(path_of(model), **training_options(model))
    reward_model.config.pad_token_id = tokenizer.pad_token_id
    if not is_reward_model(path_of(model)):
        initialise_head(reward_model, seed=training.seed)
    return BradleyTerryTrainer(
        reward_model,
        args=training,
        data_collator=RankingCollator(pad_token_of(tokenizer), arguments.share_prompts),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        adapters=adapters_of(model, reward_model, tokenizer, is_reward_model=True),
        stage=stage,
        stage_arguments=arguments,
    )


METHOD = Method(
    arguments=ARGUMENTS,
    defaults=DEFAULTS,
    read=read_pairs,
    read_rows=read_rows,
    encoder=encoder,
    make_trainer=make_trainer,
)


def main(stage: Stage, arguments: RewardModelArguments, training: RewardConfig, model: ModelConfig) -> StageResult:
    return METHOD.train(stage, arguments, training, model)


if __name__ == "__main__":
    run_stage("reward_model", ARGUMENTS, main, defaults=DEFAULTS)
