"""Supervised finetuning on conversations: cross entropy on the tokens of every assistant turn.

As in Llama 3 (arXiv 2407.21783, 4.1.3) the prompt is masked; every trained turn ends in a labelled end token. TRL's
`padding_free` is on, and works with any attention here: dialogs stand end to end, and do not see each other.

    accelerate launch stages/sft.py --config configs/stages/sft.yaml --learning_rate 1e-5
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig

from data_schemas.reading import read_conversations
from data_schemas.rows import Conversation
from data_schemas.stage_keys import StageTraits
from engine.models.loading import load_causal, load_tokenizer, path_of, training_options
from engine.models.lora import lora_config
from engine.runtime.arguments import DialogArguments
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.tokens.inspection import Encode
from engine.tokens.tables import check_contract, split_rows, tokenize
from engine.tokens.template import encode_dialog
from engine.tokens.token_rows import TokenDialog
from engine.training import loop as training_loop
from engine.training.loop import prepare_config, train_and_save
from engine.training.next_token import NextTokenTrainer, PackedCollator

RECIPE_VERSION = 2
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
    train_data_shares: list[float] | None = key_field(None, "share kept of each file of train_data; null: all")
    eval_data_shares: list[float] | None = key_field(None, "share kept of each file of eval_data; null: all")


ARGUMENTS = (SFTArguments, SFTConfig, ModelConfig)
read = read_conversations


def encoder(tokenizer: PreTrainedTokenizerBase, arguments: SFTArguments) -> tuple[Encode[Conversation], str]:
    """What a conversation is in tokens and labels, and the name of this way of doing it."""

    def encode(row: Conversation) -> TokenDialog:
        dialog = encode_dialog(tokenizer, row.messages, tools=row.tools)
        return TokenDialog(input_ids=dialog.ids, labels=dialog.labels)

    return encode, "sft-1"


def read_rows(
    stage: Stage, arguments: SFTArguments, *, seed: int
) -> tuple[list[Conversation], list[Conversation], dict[str, int]]:
    """Training rows, held-out rows, and how many were dropped by reason."""
    shares = {"shares": arguments.train_data_shares, "eval_shares": arguments.eval_data_shares}
    return *split_rows(stage, arguments, read, seed=seed, **shares), {}


def make_trainer(
    arguments: SFTArguments, training: SFTConfig, model: ModelConfig, tokenizer: Any, train: Any, held_out: Any
) -> NextTokenTrainer:
    prepare_config(training)
    end_to_end = training.padding_free and not training.packing
    training.padding_free = False  # TRL's own needs FlashAttention, and takes no collator
    return NextTokenTrainer(
        load_causal(path_of(model), **training_options(model)),
        args=training,
        data_collator=PackedCollator(tokenizer.pad_token_id) if end_to_end else None,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=lora_config(model),
    )


def main(stage: Stage, arguments: SFTArguments, training: SFTConfig, model: ModelConfig) -> StageResult:
    tokenizer = load_tokenizer(path_of(model))
    check_contract(tokenizer, path_of(model), arguments)
    train, held_out, _ = read_rows(stage, arguments, seed=training.seed)
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
    return train_and_save(stage, trainer, arguments, model)


if __name__ == "__main__":
    run_stage("sft", ARGUMENTS, main, defaults=DEFAULTS)
