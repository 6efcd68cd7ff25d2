"""A training method as a value: what sft, reward_model and dpo differ in, and the one order in which they run.

METHOD = Method(
    arguments=ARGUMENTS,
    defaults=DEFAULTS,
    read=read_pairs,
    read_rows=read_rows,
    encoder=encoder,
    make_trainer=make_trainer,
)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, ModelConfig, RewardConfig, SFTConfig

from data_schemas.reading import ReadRows
from data_schemas.rows import Conversation, PreferencePair
from data_schemas.stage_keys import Values
from engine.models.loading import load_tokenizer, path_of, read_config
from engine.runtime import progress
from engine.runtime.arguments import DialogArguments
from engine.runtime.keys import fill
from engine.runtime.stage import Stage, StageResult
from engine.tokens.inspection import Encode
from engine.tokens.positions import max_positions
from engine.tokens.tables import TokenTable, check_contract, tokenize
from engine.training.global_batches import fit_batch
from engine.training.loop import TrainingLoop
from engine.training.run import train_and_save

RowT = TypeVar("RowT", Conversation, PreferencePair)
ArgumentsT = TypeVar("ArgumentsT", bound=DialogArguments)
ArgumentsT_contra = TypeVar("ArgumentsT_contra", bound=DialogArguments, contravariant=True)
ConfigT = TypeVar("ConfigT", SFTConfig, RewardConfig, DPOConfig)
ConfigT_contra = TypeVar("ConfigT_contra", SFTConfig, RewardConfig, DPOConfig, contravariant=True)


@dataclass(frozen=True)
class SplitRows(Generic[RowT]):
    """The rows of a stage."""

    train: list[RowT]
    held_out: list[RowT]
    dropped: dict[str, int] = field(default_factory=dict)  # number of training rows that were dropped, by reason


class ReadSplitRows(Protocol[ArgumentsT_contra, RowT]):
    def __call__(self, stage: Stage, arguments: ArgumentsT_contra, *, seed: int) -> SplitRows[RowT]:
        """Training and held-out rows; `seed` draws shares of files. Raises UserError for rows that cannot be used."""
        ...


class MakeTrainer(Protocol[ArgumentsT_contra, ConfigT_contra]):
    def __call__(
        self,
        stage: Stage,
        arguments: ArgumentsT_contra,
        training: ConfigT_contra,
        model: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        train: Dataset,
        held_out: Dataset,
    ) -> TrainingLoop:
        """Loads the model and constructs the trainer on tokenized rows. Changes `training` in place."""
        ...


def pad_token_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad token's id, which `load_tokenizer` has checked to exist."""
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return pad


@dataclass(frozen=True)
class Method(Generic[ArgumentsT, ConfigT, RowT]):
    """A stage that trains on dialogs or preference pairs."""

    arguments: tuple[type[ArgumentsT], type[ConfigT], type[ModelConfig]]
    defaults: Values  # this project's defaults for TRL's keys
    read: Callable[..., ReadRows[RowT]]  # files -> rows
    read_rows: ReadSplitRows[ArgumentsT, RowT]
    # -> the function that tokenizes a row, and the version that names how it does so
    encoder: Callable[[PreTrainedTokenizerBase, ArgumentsT], tuple[Encode[RowT], str]]
    make_trainer: MakeTrainer[ArgumentsT, ConfigT]

    def train(self, stage: Stage, arguments: ArgumentsT, training: ConfigT, model: ModelConfig) -> StageResult:
        """The `main` of the stage: read, tokenize, construct the trainer, train and save."""
        tokenizer = load_tokenizer(path_of(model))
        check_contract(tokenizer, path_of(model), arguments)
        with progress.activity("reading rows"):
            rows = self.read_rows(stage, arguments, seed=training.seed)
        options = {"max_length": training.max_length, "max_positions": max_positions(read_config(path_of(model)))}
        train, held_out = (
            self.tokenize(stage, side, some, tokenizer, arguments, **options)
            for side, some in (("train", rows.train), ("eval", rows.held_out))
        )
        fit_batch(arguments, training, len(train.rows))
        trainer = self.make_trainer(stage, arguments, training, model, tokenizer, train.rows, held_out.rows)
        return train_and_save(trainer, model, metrics={**rows.dropped, **train.counts, **held_out.counts})

    def tokenize(
        self,
        stage: Stage,
        side: str,
        rows: Sequence[RowT],
        tokenizer: PreTrainedTokenizerBase,
        arguments: ArgumentsT,
        *,
        max_length: int | None,
        max_positions: int | None = None,
    ) -> TokenTable:
        """The rows of one side ("train" or "eval") as a table on disk, computed once by the first process."""
        encode, version = self.encoder(tokenizer, arguments)
        return tokenize(
            stage,
            side,
            rows,
            encode,
            tokenizer,
            version=version,
            max_length=max_length,
            on_long_row=arguments.on_long_row,
            on_bad_row=arguments.on_bad_row,
            max_positions=max_positions,
        )

    def fill(self, values: Values) -> tuple[ArgumentsT, ConfigT, ModelConfig]:
        """The stage's dataclasses from checked values. Raises ConfigError if one of them refuses a value."""
        arguments, training, model = fill(self.arguments, values, self.defaults)
        return arguments, training, model
