"""Prepares the base model from which every later stage starts: chat template, end token of a turn, separate pad token.

Many base models lack a chat template, have no row in the embeddings for a template's tokens, or pad with their end
token, so that masking padding by id hides the end token and the model never learns to stop.
`extend_tokenizer` adds tokens for another language, so that the model can be pretrained on it.

    python stages/prepare_base.py --model_name_or_path BASE --chat_template chatml --output_dir prepared
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from data_schemas.errors import ConfigError, UserError
from data_schemas.model_sizes import check_tokenizer_size
from data_schemas.reading import read_documents
from data_schemas.rows import Message
from data_schemas.sources import SourceValue
from data_schemas.stage_keys import StageTraits
from engine.models.extended_rows import initialise_rows, loss_per_byte
from engine.models.loading import load_causal, read_tokenizer
from engine.models.verification import check_weights
from engine.runtime.arguments import LoadingArguments
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.tokens.contract import contract_of
from engine.tokens.extension import Extension, extend_tokenizer, tokens_per_character
from engine.tokens.rendering import DEFAULT_DATE, refuses_system, with_fixed_date, writes_date
from engine.tokens.template import encode_turns, end_of_turn, read_template

RECIPE_VERSION = 1
EXAMPLE = "python stages/prepare_base.py --model_name_or_path BASE --chat_template chatml --output_dir prepared"
TRAITS = StageTraits(
    purpose="Gives the base model its chat template, end token and padding token.",
    position=20,
    kind="transforms",
    runs="once",
    one_process=True,
)
PAD = "<|pad|>"
HELD_OUT = 10  # every tenth text of extend_tokenizer
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PrepareBaseArguments(LoadingArguments):
    model_name_or_path: str = required_field("the base model: a folder or a hub name", role="model")
    model_revision: str = key_field("main", "branch, tag or commit of a hub name")
    chat_template: str | None = key_field(None, "chatml, a .jinja file, or a template's text; null: the model's own")
    template_date: str | None = key_field(
        None, f"YYYY-MM-DD, written into a template that writes the current date; null: {DEFAULT_DATE}"
    )
    pad_to_multiple_of: int | None = key_field(
        None,
        "the number of embedding rows becomes a multiple of this, as 64, which a GPU multiplies faster; rows "
        "beyond the tokens start as the mean of the others; null: as many rows as the model has or its tokens need",
        omitted_at_default=True,
        minimum=1,
        maximum=10**6,
    )
    extend_tokenizer: list[SourceValue] | None = key_field(
        None, "files of texts, as in another language, from which num_new_tokens tokens are learnt", role="rows"
    )
    num_new_tokens: int | None = key_field(
        None,
        "tokens that extend_tokenizer adds behind the tokenizer's own, which keep their ids",
        omitted_at_default=True,
        minimum=1,
        maximum=10**6,
    )
    needs_system_role: bool = key_field(
        False, "later steps have system messages: an error where the template has none", role="runtime"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key_field(
        "auto", "precision the model is saved in: auto (as it came), float32, bfloat16, float16"
    )


ARGUMENTS = (PrepareBaseArguments,)


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    *,
    date: str | None = None,
    needs_system: bool = False,
) -> list[str]:
    """Sets the template, end token and pad token, in place; returns what a user should know about the template.

    A template that writes the current date is changed so that it writes `date` (YYYY-MM-DD; None: DEFAULT_DATE).
    Raises ConfigError for a missing or unusable template, and with `needs_system` for one without a system role.
    """
    notes: list[str] = []
    template = read_template(chat_template)
    if template is not None:
        tokenizer.chat_template = template[0]
        known = tokenizer.get_vocab()
        missing = [token for token in template[1] if token not in known]
        if missing:
            tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{tokenizer.name_or_path} has no chat template; set prepare_base.chat_template (chatml, or a file)"
        )
    if writes_date(tokenizer.chat_template):
        tokenizer.chat_template = with_fixed_date(str(tokenizer.chat_template), date or DEFAULT_DATE)
        notes.append(
            f"the chat template writes the current date; in all steps it writes {date or DEFAULT_DATE} "
            "(prepare_base.template_date)"
        )
    end = end_of_turn(tokenizer)
    if end is None:
        raise ConfigError(
            "the chat template closes an assistant turn without a special token; set one that does (chatml)"
        )
    tokenizer.eos_token = end
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    turns = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello")]
    try:
        encoded = encode_turns(tokenizer, [*turns, *turns])  # the template must be one that later stages can train on
    except UserError as error:
        raise ConfigError(f"chat template: {error}") from error
    if len(encoded) > 1:
        notes.append(
            "the chat template renders earlier turns differently once more turns follow them: a dialog of several "
            "turns is trained as one row for each turn"
        )
    if needs_system and (reason := refuses_system(tokenizer)):
        raise ConfigError(
            f"rejection_sampling.system_prompts puts system messages before the prompts, but {reason}; leave "
            "system_prompts out, or set prepare_base.chat_template to one with a system role"
        )
    return notes


def fit_embeddings(model: PreTrainedModel, num_tokens: int, *, multiple_of: int = 1) -> int:
    """Adds rows to the embeddings for the tokens that lack one, and up to a multiple; returns how many.

    A new row is the mean of the others, so that the logits of its token start at an average value.
    """
    before = _embedding_weight(model).size(0)
    num_rows = -(-max(num_tokens, before) // multiple_of) * multiple_of
    if num_rows == before:
        return 0
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    head = model.get_output_embeddings()
    weights = [_embedding_weight(model)] + ([head.weight] if head is not None else [])
    with torch.no_grad():
        for weight in weights:
            assert isinstance(weight, torch.Tensor)
            weight[before:] = weight[:before].float().mean(0).to(weight.dtype)
    return num_rows - before


@dataclass(frozen=True)
class Corpus:
    """The texts that a tokenizer is extended on."""

    learnt_from: list[str]
    held_out: list[str]  # every tenth text, which the figures are measured on; of fewer than ten, all

    @classmethod
    def read(cls, sources: list[SourceValue]) -> "Corpus":
        texts = [document.text for document in read_documents(sources).rows]
        if len(texts) < HELD_OUT:
            return cls(texts, texts)
        kept = [text for place, text in enumerate(texts) if place % HELD_OUT]
        return cls(kept, texts[::HELD_OUT])


def fit_extension(
    model: PreTrainedModel, old: PreTrainedTokenizerBase, extension: Extension, texts: list[str]
) -> dict[str, float]:
    """Gives the new tokens their rows, in place; returns tokens a character and the loss of the texts before and after.

    The embeddings have a row for every token already.
    """
    before = loss_per_byte(model, old, texts)
    initialise_rows(model, extension.pieces)
    figures = {
        "tokens_per_character_before": tokens_per_character(old, texts),
        "tokens_per_character": tokens_per_character(extension.tokenizer, texts),
        "loss_per_byte_before": before,
        "loss_per_byte": loss_per_byte(model, extension.tokenizer, texts),
    }
    log.info(
        "%d tokens learnt from extend_tokenizer: %.3f tokens a character before, %.3f now; before training the loss is "
        "%.3f nats a byte with the old tokens, %.3f with the new ones",
        len(extension.pieces),
        *figures.values(),
    )
    return {name: round(value, 6) for name, value in figures.items()}


def _embedding_weight(model: PreTrainedModel) -> torch.Tensor:
    """[vocabulary, hidden]"""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


def main(stage: Stage, arguments: PrepareBaseArguments) -> StageResult:
    source = arguments.model_name_or_path
    tokenizer = read_tokenizer(source, revision=arguments.model_revision)
    check_tokenizer_size(Path(source), where="model_name_or_path")
    original_end_id = tokenizer.eos_token_id
    old, extension, corpus = tokenizer, None, None
    if arguments.extend_tokenizer and arguments.num_new_tokens:
        corpus = Corpus.read(arguments.extend_tokenizer)
        extension = extend_tokenizer(tokenizer, corpus.learnt_from, num_tokens=arguments.num_new_tokens)
        tokenizer = extension.tokenizer
    notes = prepare_tokenizer(
        tokenizer,
        arguments.chat_template,
        date=arguments.template_date,
        needs_system=arguments.needs_system_role,
    )
    for note in notes:
        log.warning("%s", note)
    model = load_causal(source, dtype=arguments.dtype, revision=arguments.model_revision)
    num_added = fit_embeddings(model, len(tokenizer), multiple_of=arguments.pad_to_multiple_of or 1)
    num_rows = _embedding_weight(model).size(0)
    num_new = max(0, len(tokenizer) - (num_rows - num_added))
    figures = fit_extension(model, old, extension, corpus.held_out) if extension and corpus else {}
    ends = list(dict.fromkeys(token for token in (tokenizer.eos_token_id, original_end_id) if token is not None))
    # Only end and pad tokens: the model's own top_k or temperature would otherwise be used in every later sampling.
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(stage.folder / "model")
    tokenizer.save_pretrained(stage.folder / "model")
    check_weights(stage.folder / "model")
    log.info("end token %s, pad token %s, %d new embedding rows", tokenizer.eos_token, tokenizer.pad_token, num_added)
    return StageResult(
        outputs={"model": "model"},
        metrics={"new_tokens": num_new, "parameters": model.num_parameters(), **figures},
        contract=contract_of(tokenizer),
    )


if __name__ == "__main__":
    run_stage("prepare_base", ARGUMENTS, main)
