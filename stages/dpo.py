"""Direct preference optimization (arXiv 2305.18290, eq. 7) from the round's SFT model, which is also the reference.

As in Llama 3 (arXiv 2407.21783, 4.1.4): beta 0.1 and 0.2 x NLL on the chosen answer. Not yet: the mask of formatting
tokens.

    accelerate launch stages/dpo.py --config configs/stages/dpo.yaml --beta 0.2
"""

from dataclasses import dataclass
from typing import Any

from trl import DPOConfig, ModelConfig

from data_schemas.reading import read_pairs
from data_schemas.rows import PreferencePair
from engine import training as training_loop
from engine.arguments import TrainingStageArguments
from engine.models import load_causal, load_tokenizer, lora_config, path_of, training_options
from engine.preferences import PreferenceTrainer
from engine.stage import Made, Stage, run_stage
from engine.template import encode_answer
from engine.tokenized import split_rows, tokenize_sides
from engine.training import prepare_config, train_and_save

RECIPE_VERSION = 1
EXAMPLE = "accelerate launch stages/dpo.py --config configs/stages/dpo.yaml --beta 0.2"
DEFAULTS = training_loop.DEFAULTS | {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}


@dataclass(kw_only=True)
class DPOArguments(TrainingStageArguments):
    pass


ARGUMENTS = (DPOArguments, DPOConfig, ModelConfig)


def main(stage: Stage, arguments: DPOArguments, training: DPOConfig, model: ModelConfig) -> Made:
    path = path_of(model)
    tokenizer = load_tokenizer(path)
    train, held_out = split_rows(stage, arguments, read_pairs)

    def encode(row: PreferencePair) -> dict[str, Any] | None:
        prompt_ids, chosen_ids = encode_answer(tokenizer, row.prompt, row.chosen, tools=row.tools)
        _, rejected_ids = encode_answer(tokenizer, row.prompt, row.rejected, tools=row.tools)
        longest = len(prompt_ids) + max(len(chosen_ids), len(rejected_ids))
        if training.max_length is not None and longest > training.max_length:
            return None
        return {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}

    tables = tokenize_sides(
        stage, train, held_out, encode, tokenizer, version=f"dpo-1 max_length={training.max_length}"
    )
    prepare_config(training)
    options = training_options(model)
    lora = lora_config(model)
    trainer = PreferenceTrainer(
        load_causal(path, **options),
        # With adapters the reference is the model without them; else a copy of its own, from the same folder.
        ref_model=None if lora or training.precompute_ref_log_probs else load_causal(path, **options),
        args=training,
        train_dataset=tables[0],
        eval_dataset=tables[1],
        processing_class=tokenizer,
        peft_config=lora,
    )
    return train_and_save(stage, trainer, arguments, model)


if __name__ == "__main__":
    run_stage("dpo", ARGUMENTS, main, defaults=DEFAULTS)
