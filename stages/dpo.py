"""Direct preference optimisation (arXiv 2305.18290, eq. 7) from a policy.

The reference is that same policy before training, unless `reference_model` names another. In the loop the policy is the
round's SFT model.

As in Llama 3 (arXiv 2407.21783, 4.1.4): beta is 0.1, header and termination tokens are masked in the preference term,
and 0.2 x NLL of the chosen answer is added, in which they are not masked.

    accelerate launch stages/dpo.py --config configs/stages/dpo.yaml --learning_rate 5e-7
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, ModelConfig

from data_schemas.reading import read_pairs
from data_schemas.rows import PreferencePair
from data_schemas.stage_keys import StageTraits
from engine.curation.pair_selection import all_pairs, select_pairs
from engine.models.loading import load_causal, path_of, training_options
from engine.models.lora import adapters_of, load_policy, reference_options
from engine.runtime.arguments import PreferenceArguments
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.tokens.inspection import Encode
from engine.tokens.tables import split_rows
from engine.tokens.template import encode_dialog
from engine.tokens.token_rows import TokenPair
from engine.training import loop as training_loop
from engine.training.dpo import DPOLoopTrainer, PreferenceCollator
from engine.training.loop import prepare_config
from engine.training.method import Method, SplitRows, pad_token_of
from engine.training.reference import Reference

RECIPE_VERSION = 5
EXAMPLE = "accelerate launch stages/dpo.py --config configs/stages/dpo.yaml --learning_rate 5e-7"
TRAITS = StageTraits(
    purpose="Optimises a policy on preference pairs against its reference.",
    position=70,
    kind="trains",
    has_variants=True,
    variant_key="dpo_batches",
    preload=True,
    headlines=["eval_rewards/accuracies", "eval_rewards/margins"],
    summary_columns={"dpo_reward_accuracy": "eval_rewards/accuracies"},
)
DEFAULTS = training_loop.DEFAULTS | {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class DPOArguments(PreferenceArguments):
    mask_formatting: bool = key_field(True, "header and termination tokens are excluded from the preference term")
    nll_per: Literal["answer", "batch"] = key_field(
        "answer", "tokens that the NLL term is divided by: those of its answer, or their mean over the global batch"
    )
    ranking_pairs: Literal["best_worst", "all"] = key_field(
        "best_worst", "pairs made from a ranking: its best against its worst answer, or all pairs"
    )
    train_data_shares: list[float] | None = key_field(
        None, "share kept of each file of train_data; null: all", minimum=0, maximum=1, omitted_at_default=True
    )
    reference_model: str | None = key_field(None, "the reference policy; null: the model it starts from", role="model")


ARGUMENTS = (DPOArguments, DPOConfig, ModelConfig)


def encoder(tokenizer: PreTrainedTokenizerBase, arguments: DPOArguments) -> tuple[Encode[PreferencePair], str]:
    """The function that tokenizes a pair, with the trained and the content mask of each answer, and its version."""
    mask = arguments.mask_formatting

    def encode(row: PreferencePair) -> list[TokenPair]:
        encoded: dict[str, list] = {}
        for side, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
            dialog = encode_dialog(
                tokenizer, [*row.prompt, *answer], tools=row.tools, train_from=len(row.prompt), find_content=mask
            )
            start = dialog.trained.index(True)
            encoded |= {
                "prompt_ids": dialog.ids[:start],
                f"{side}_ids": dialog.ids[start:],
                f"{side}_trained": dialog.trained[start:],
                f"{side}_content": dialog.content[start:],
            }
        return [TokenPair(**encoded)]

    return encode, f"dpo-2 {mask=}"


def read_rows(stage: Stage, arguments: DPOArguments, *, seed: int) -> SplitRows[PreferencePair]:
    """The training pairs and the held-out ones; `seed` draws the share that is kept of a file."""
    train, held_out = split_rows(stage, arguments, read_pairs, shares=arguments.train_data_shares, seed=seed)
    train, dropped = select_pairs(stage, arguments, train)
    if arguments.ranking_pairs == "all":
        train, held_out = ([pair for row in rows for pair in all_pairs(row)] for rows in (train, held_out))
    return SplitRows(train, held_out, dropped)


def make_trainer(
    stage: Stage,
    arguments: DPOArguments,
    training: DPOConfig,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    held_out: Dataset,
) -> DPOLoopTrainer:
    prepare_config(training)
    path = path_of(model)
    reference_path = arguments.reference_model or path
    options = reference_options(reference_path, training_options(model))
    reference = ref_model = None
    if training.sync_ref_model:
        log.info("sync_ref_model: the reference changes, so it stays in memory and is run in every step")
        ref_model = load_causal(reference_path, **options)
    elif set(training.loss_type) != {"sft"}:  # the SFT loss needs no reference
        is_start = Path(reference_path).resolve() == Path(path).resolve()
        reference = Reference(reference_path, is_start=is_start, options=options)
    training.precompute_ref_log_probs = not training.sync_ref_model  # if False, TRL keeps a reference model in memory
    policy = load_policy(model)
    return DPOLoopTrainer(
        policy,
        ref_model=ref_model,
        args=training,
        data_collator=PreferenceCollator(pad_token_id=pad_token_of(tokenizer), share_prompts=arguments.share_prompts),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        adapters=adapters_of(model, policy, tokenizer),
        stage=stage,
        stage_arguments=arguments,
        nll_per=arguments.nll_per,
        reference=reference,
    )


METHOD = Method(
    arguments=ARGUMENTS,
    defaults=DEFAULTS,
    read=read_pairs,
    read_rows=read_rows,
    encoder=encoder,
    make_trainer=make_trainer,
)


def main(stage: Stage, arguments: DPOArguments, training: DPOConfig, model: ModelConfig) -> StageResult:
    return METHOD.train(stage, arguments, training, model)


if __name__ == "__main__":
    run_stage("dpo", ARGUMENTS, main, defaults=DEFAULTS)
