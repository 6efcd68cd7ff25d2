"""Supervised finetuning on conversations: cross entropy on the tokens of every assistant turn.

As in Llama 3 (arXiv 2407.21783, 4.1.3) the prompt is masked; every trained turn ends in a labelled end token. TRL's
`padding_free` is on by default and supports any attention here: dialogs are packed into one row without padding, and
do not attend to each other.

    accelerate launch stages/sft.py --config configs/stages/sft.yaml --learning_rate 1e-5
"""

from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig

from data_schemas.reading import read_conversations
from data_schemas.rows import Conversation
from data_schemas.stage_keys import StageTraits
from engine.models.lora import adapters_of, load_policy
from engine.runtime.arguments import DialogArguments
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.tokens.inspection import Encode
from engine.tokens.tables import split_rows
from engine.tokens.template import encode_turns
from engine.tokens.token_rows import TokenDialog
from engine.training import loop as training_loop
from engine.training.loop import prepare_config
from engine.training.method import Method, SplitRows, pad_token_of
from engine.training.next_token import NextTokenTrainer, PackedCollator

RECIPE_VERSION = 3
EXAMPLE = "accelerate launch stages/sft.py --config configs/stages/sft.yaml --learning_rate 1e-5"
TRAITS = StageTraits(
    purpose="Finetunes a policy on conversations.",
    position=60,
    kind="trains",
    has_variants=True,
    variant_key="human_share",
    preload=True,
    headlines=["eval_loss_at_step_0", "eval_loss"],
    summary_columns={"sft_eval_loss": "eval_loss"},
)
DEFAULTS = training_loop.DEFAULTS | {"padding_free": True}


@dataclass(kw_only=True)
class SFTArguments(DialogArguments):
    train_data_shares: list[float] | None = key_field(
        None, "share kept of each file of train_data; null: all", minimum=0, maximum=1
    )
    eval_data_shares: list[float] | None = key_field(
        None, "share kept of each file of eval_data; null: all", minimum=0, maximum=1
    )


ARGUMENTS = (SFTArguments, SFTConfig, ModelConfig)


def encoder(tokenizer: PreTrainedTokenizerBase, arguments: SFTArguments) -> tuple[Encode[Conversation], str]:
    """The function that tokenizes and labels a conversation, and its version."""

    def encode(row: Conversation) -> list[TokenDialog]:
        dialogs = encode_turns(tokenizer, row.messages, tools=row.tools)
        return [TokenDialog(input_ids=dialog.ids, labels=dialog.labels) for dialog in dialogs]

    return encode, "sft-1"


def read_rows(stage: Stage, arguments: SFTArguments, *, seed: int) -> SplitRows[Conversation]:
    train, held_out = split_rows(
        stage,
        arguments,
        read_conversations,
        shares=arguments.train_data_shares,
        eval_shares=arguments.eval_data_shares,
        seed=seed,
    )
    return SplitRows(train, held_out)


def make_trainer(
    stage: Stage,
    arguments: SFTArguments,
    training: SFTConfig,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    held_out: Dataset,
) -> NextTokenTrainer:
    prepare_config(training)
    without_padding = training.padding_free and not training.packing
    training.padding_free = False  # TRL's own needs FlashAttention and accepts no collator
    policy = load_policy(model)
    return NextTokenTrainer(
        policy,
        args=training,
        data_collator=PackedCollator(pad_token_of(tokenizer)) if without_padding else None,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        adapters=adapters_of(model, policy, tokenizer),
        stage=stage,
        stage_arguments=arguments,
    )


METHOD = Method(
    arguments=ARGUMENTS,
    defaults=DEFAULTS,
    read=read_conversations,
    read_rows=read_rows,
    encoder=encoder,
    make_trainer=make_trainer,
)


def main(stage: Stage, arguments: SFTArguments, training: SFTConfig, model: ModelConfig) -> StageResult:
    return METHOD.train(stage, arguments, training, model)


if __name__ == "__main__":
    run_stage("sft", ARGUMENTS, main, defaults=DEFAULTS)
