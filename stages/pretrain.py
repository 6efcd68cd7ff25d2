"""Pretraining: documents -> one token stream with end tokens -> blocks of `block_size` -> next-token loss.

It starts from random weights (an architecture in the config, a tokenizer trained on the corpus or given) or from a
model. As in Llama 3 (arXiv 2407.21783, 3.2) attention does not cross documents inside a block.

    accelerate launch stages/pretrain.py --config configs/stages/pretrain.yaml
"""

import logging
import os
from dataclasses import dataclass

import psutil
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import ModelConfig, SFTConfig

from data_schemas import splitting
from data_schemas.errors import ConfigError
from data_schemas.model_sizes import check_fits
from data_schemas.reading import read_documents
from data_schemas.rows import Document
from data_schemas.stage_keys import StageTraits
from engine.models.loading import ModelOptions, load_tokenizer, read_config
from engine.models.lora import adapters_of, load_policy
from engine.models.rotary import change_rotary_positions
from engine.runtime import progress
from engine.runtime.arguments import TrainingStageArguments
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.runtime.world import wait_until_exists
from engine.tokens.tables import table
from engine.tokens.token_rows import TokenDialog
from engine.training.global_batches import fit_batch
from engine.training.loop import DEFAULTS, prepare_config
from engine.training.next_token import BlockCollator, PretrainTrainer
from engine.training.run import train_and_save

RECIPE_VERSION = 3
EXAMPLE = "accelerate launch stages/pretrain.py --config configs/stages/pretrain.yaml"
TRAITS = StageTraits(
    purpose="Trains a base model on documents, from random weights or from a given model.",
    position=10,
    kind="trains",
    runs="once",
    preload=True,
    headlines=["eval_loss_at_step_0", "eval_loss"],
)
END, PAD = "<|endoftext|>", "<|pad|>"
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PretrainArguments(TrainingStageArguments):
    architecture: dict[str, object] | None = key_field(
        None, "from random weights: model_type and its config keys, as in {model_type: llama, hidden_size: 128}"
    )
    tokenizer_name_or_path: str | None = key_field(
        None, "tokenizer to use; null: train one on train_data", role="model"
    )
    vocab_size: int = key_field(8192, "tokens of the tokenizer that is trained on train_data", minimum=1, maximum=10**7)
    special_tokens: list[str] = key_field([], "tokens of that tokenizer besides end and pad, such as a template's")
    block_size: int = key_field(1024, "tokens a row", minimum=2, maximum=10**8)
    rope_theta: float | None = key_field(
        None,
        "base of the rotary positions of a model that is pretrained further, as 500000.0 for longer rows; null: "
        "the model's own",
        omitted_at_default=True,
        above=0,
        maximum=1e12,
    )
    rope_scaling: dict[str, object] | None = key_field(
        None,
        "scaling of its rotary positions, as in {rope_type: yarn, factor: 4.0}; null: its own",
        omitted_at_default=True,
    )
    mask_documents: bool = key_field(True, "attention and positions start again with each document of a block")
    muon_learning_rate: float | None = key_field(
        None, "learning rate of Muon on the hidden matrices, AdamW keeps the rest; null: TRL's optim alone", above=0
    )


ARGUMENTS = (PretrainArguments, SFTConfig, ModelConfig)


@progress.activity("training the tokenizer")
def train_tokenizer(texts: list[str], *, vocab_size: int, special_tokens: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which can encode any text. The same texts give the same tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = [END, PAD, *special_tokens]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, extra_special_tokens=special_tokens or None
    )


def blocks(texts: list[str], tokenizer: PreTrainedTokenizerBase, *, size: int) -> list[TokenDialog]:
    """The texts' tokens with an end token after each text, in rows of `size`.

    A last, shorter row is left out, unless it is the only one.
    """
    stream: list[int] = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        stream += [*ids, int(tokenizer.eos_token_id)]  # pyright: ignore[reportArgumentType]
    rows = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
    return [TokenDialog(input_ids=row, labels=row) for row in rows or [stream]]


@progress.activity("reading rows")
def split_documents(arguments: PretrainArguments) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents: those of eval_data, or a share by the hash of the text.

    Of documents so few that no hash is below the share, those with the lowest hashes are held out. Raises ConfigError
    if none is held out.
    """
    train = read_documents(arguments.train_data, on_bad_row=arguments.on_bad_row).rows
    if arguments.eval_data:
        return train, read_documents(arguments.eval_data, on_bad_row=arguments.on_bad_row).rows
    kept, held_out = splitting.split_documents(train, validation_share=arguments.validation_share)
    if not held_out:
        lowest = splitting.lowest_groups([document.text for document in train], arguments.validation_share)
        kept = [document for document in train if document.text not in lowest]
        held_out = list({document.text: document for document in train if document.text in lowest}.values())
    if not held_out:
        raise ConfigError(f"no document is held out of {len(train)}: give eval_data, or a larger validation_share")
    return kept, held_out


def load_or_train_tokenizer(
    stage: Stage, arguments: PretrainArguments, model: ModelConfig, texts: list[str]
) -> PreTrainedTokenizerBase:
    """The given tokenizer or that of the model, else one that the first process trains on the texts."""
    given = arguments.tokenizer_name_or_path or model.model_name_or_path
    if given:
        tokenizer = load_tokenizer(given, needs_template=False)
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"the tokenizer of {given} has no end token (eos_token), which separates documents")
        return tokenizer
    path = stage.folder / "checkpoints" / "tokenizer"
    if stage.is_main and not path.exists():
        trained = train_tokenizer(texts, vocab_size=arguments.vocab_size, special_tokens=arguments.special_tokens)
        partial = path.with_name(f".tokenizer.partial-{os.getpid()}")
        trained.save_pretrained(str(partial))
        partial.rename(path)
    wait_until_exists(path)
    return load_tokenizer(str(path), needs_template=False)


def make_model(
    arguments: PretrainArguments, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> PreTrainedModel:
    """The model to continue from, or the architecture with random weights drawn by `seed`."""
    if model.model_name_or_path:
        changed: ModelOptions = {}
        if arguments.rope_theta is not None or arguments.rope_scaling is not None:
            changed["config"] = read_config(model.model_name_or_path, revision=model.model_revision)
            change_rotary_positions(
                changed["config"],
                theta=arguments.rope_theta,
                scaling=arguments.rope_scaling,
                num_tokens=arguments.block_size,
            )
        return load_policy(model, **changed)
    keys = dict(arguments.architecture or {})
    model_type = str(keys.pop("model_type", "llama"))
    try:
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **keys)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(f"architecture: {' '.join(str(error).split())[:300]}") from error
    check_fits(config.to_dict(), psutil.virtual_memory().total, place="architecture")
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    set_seed(seed)
    dtype = model.dtype if model.dtype not in (None, "auto") else "float32"
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def check_combination(arguments: PretrainArguments, model: ModelConfig) -> None:
    """Raises ConfigError for keys that cannot be used together."""
    if not model.model_name_or_path and not arguments.architecture:
        raise ConfigError("pretrain needs architecture (random weights) or model_name_or_path (to continue from)")
    has_rope = arguments.rope_theta is not None or arguments.rope_scaling is not None
    if has_rope and not model.model_name_or_path:
        raise ConfigError(
            "rope_theta and rope_scaling change a model that is pretrained further; with random weights write "
            "architecture: {rope_parameters: {rope_theta: 500000.0}}"
        )
    if arguments.muon_learning_rate is not None and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise ConfigError(
            "muon_learning_rate does not work under DeepSpeed, which creates the optimizer itself; set it to null"
        )


def make_tables(
    stage: Stage, tokenizer: PreTrainedTokenizerBase, train: list[Document], held_out: list[Document], *, size: int
) -> tuple[Dataset, Dataset]:
    """Training and held-out blocks of `size` tokens, as tables on disk."""

    def blocks_of(side: str, rows: list[Document]) -> Dataset:
        version = f"pretrain-1 block_size={size}"
        return table(
            stage,
            side,
            rows,
            tokenizer,
            lambda: blocks([row.text for row in rows], tokenizer, size=size),
            version=version,
        )

    return blocks_of("train", train), blocks_of("eval", held_out)


def make_trainer(
    stage: Stage,
    arguments: PretrainArguments,
    training: SFTConfig,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    held_out: Dataset,
) -> PretrainTrainer:
    prepare_config(training)
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    collator = BlockCollator(end, end_token_id=end)  # blocks have one length, so nothing is padded
    made = make_model(arguments, model, tokenizer, seed=training.seed)
    return PretrainTrainer(
        made,
        args=training,
        data_collator=collator if arguments.mask_documents else None,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        adapters=adapters_of(model, made, tokenizer),
        stage=stage,
        stage_arguments=arguments,
        muon_learning_rate=arguments.muon_learning_rate,
    )


def main(stage: Stage, arguments: PretrainArguments, training: SFTConfig, model: ModelConfig) -> StageResult:
    check_combination(arguments, model)
    train, held_out = split_documents(arguments)
    tokenizer = load_or_train_tokenizer(stage, arguments, model, [row.text for row in train])
    size = arguments.block_size
    tables = make_tables(stage, tokenizer, train, held_out, size=size)
    log.info("%d documents, %d blocks of %d tokens, %d held out", len(train), len(tables[0]), size, len(tables[1]))
    fit_batch(arguments, training, len(tables[0]))
    trainer = make_trainer(stage, arguments, training, model, tokenizer, *tables)
    return train_and_save(trainer, model)


if __name__ == "__main__":
    run_stage("pretrain", ARGUMENTS, main, defaults=DEFAULTS)
