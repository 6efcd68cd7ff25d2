"""The stage's trainer on a small real model with rows of a probe's form, for commands/memory_probe.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer import dpo_trainer, sft_trainer

from commands.trials import METHODS
from data_schemas.cost_request import Probe, RowSample
from data_schemas.stage_keys import Keys, stages
from engine.runtime import arguments
from engine.runtime.keys import fill
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.tokens.token_rows import TokenDialog, TokenPair, TokenRanking, TokenRow
from stages import pretrain


@contextmanager
def recorded_heads() -> Iterator[list[Callable[[PreTrainedModel], object]]]:
    """Inside, the calls with which TRL replaces the head of a model by its chunked one are listed, to be repeated."""
    calls: list[Callable[[PreTrainedModel], object]] = []
    original = sft_trainer.add_fused_lm_head

    def add(model: PreTrainedModel, *args: Any, **options: Any) -> object:
        calls.append(lambda other: original(other, *args, **options))
        return original(model, *args, **options)

    modules = (sft_trainer, dpo_trainer)
    for module in modules:
        vars(module)["add_fused_lm_head"] = add
    try:
        yield calls
    finally:
        for module in modules:
            vars(module)["add_fused_lm_head"] = original


def config_of(probe: Probe, *, layers: int) -> PretrainedConfig:
    """The configuration of the recipe's model with fewer layers."""
    keys = dict(probe["config"])
    kind = str(keys.pop("model_type"))
    for name, value in keys.items():
        if isinstance(value, list) and len(value) == probe["layers"] and name != "architectures":
            keys[name] = value[:layers]
    keys["n_layer" if "n_layer" in keys else "num_hidden_layers"] = layers
    for name in ("architectures", "torch_dtype", "dtype", "transformers_version", "quantization_config"):
        keys.pop(name, None)
    return AutoConfig.for_model(kind, **keys)


def token_row(stage: str, row: RowSample) -> TokenRow:
    """A row in tokens with these lengths. Branches begin with different tokens, so they share the prompt only."""
    shared, answers = [5] * row["shared"], [[10 + number] + [6] * (n - 1) for number, n in enumerate(row["branches"])]
    if stage == "reward_model":
        return TokenRanking(answers=[shared + answer for answer in answers])
    if stage == "dpo":
        chosen, rejected = answers[0], answers[-1]
        flags = [[True] * len(chosen), [True] * len(rejected)]
        return TokenPair(shared, chosen, flags[0], flags[0], rejected, flags[1], flags[1])
    ids = [token for answer in answers for token in answer]
    trained = max(1, min(row["trained"], len(ids)))
    return TokenDialog(input_ids=ids, labels=[-100] * (len(ids) - trained) + ids[-trained:])


def short(probe: Probe) -> list[RowSample]:
    """A few tokens in rows of the probe's form."""
    count = max(2, len(probe["micro_batch"][0]["branches"])) if probe["stage"] in ("reward_model", "dpo") else 1
    return [{"shared": 3 if count > 1 else 0, "branches": [4] * count, "trained": 3}]


def trainer_of(probe: Probe, tokenizer: PreTrainedTokenizerBase, scratch: Path) -> Any:
    """The stage's trainer on the small model, as in a trial (commands/trials.py)."""
    name = probe["stage"]
    method = METHODS.get(name)
    classes = method.arguments if method else pretrain.ARGUMENTS
    defaults = method.defaults if method else pretrain.DEFAULTS
    rows = short(probe)
    keys: Keys = probe["keys"] | {
        "model_name_or_path": str(scratch / "model"),
        "train_data": [],
        "eval_data": None,
        "output_dir": str(scratch / "checkpoints"),
        "global_batch_size": len(rows),
        "per_device_train_batch_size": len(rows),
        "max_steps": 1,
        "report_to": "none",
        "bf16": False,
        "fp16": False,
        "use_cpu": True,
        "torch_compile": False,
        "push_to_hub": False,
        "reference_model": None,
        "tokenizer_name_or_path": None,
        "load_in_4bit": False,
        "load_in_8bit": False,
    }
    keys = {key: value for key, value in keys.items() if key in stages()[name].keys}
    own, training, model = fill(classes, arguments.resolve_batch(keys, default_global=len(rows)), defaults)
    stage = Stage(name, scratch, keys, Tracker(scratch, active=False), is_main=True)
    table = Dataset.from_list([token_row(name, row).columns() for row in rows])
    make: Callable[..., Any] = method.make_trainer if method else pretrain.make_trainer
    return make(stage, own, training, model, tokenizer, table, table)
