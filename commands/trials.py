"""One trial of a stage: what the stage would build, built on a small model, and one step, one evaluation, one answer.

`commands/preflight.py` runs each trial in a separate process.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from data_schemas.check_request import Trial
from data_schemas.key_rules import check_values
from data_schemas.rows import Conversation, PreferencePair, Prompt, Row
from data_schemas.stage_keys import Keys
from engine.curation.paraphrasing import last_user_text, paraphrase_question
from engine.models.loading import load_tokenizer, read_config
from engine.runtime import arguments
from engine.runtime.keys import fill
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Policy, SamplingSettings
from engine.sampling.sampler import sample_in_turn
from engine.tokens.inspection import encode_all
from engine.tokens.positions import max_positions
from engine.tokens.token_rows import TokenDialog, TokenRow
from engine.training.method import Method
from engine.training.run import train_and_save
from stages import annotate, evaluate_policy, paraphrase, pretrain, rejection_sampling, rl
from stages.dpo import METHOD as DPO
from stages.reward_model import METHOD as REWARD_MODEL
from stages.sft import METHOD as SFT

METHODS: dict[str, Method] = {"sft": SFT, "reward_model": REWARD_MODEL, "dpo": DPO}
GENERATING: dict[str, Sequence[type]] = {
    "paraphrase": paraphrase.ARGUMENTS,
    "annotate": annotate.ARGUMENTS,
    "rejection_sampling": rejection_sampling.ARGUMENTS,
    "evaluate_policy": evaluate_policy.ARGUMENTS,
}
RowType = TypeVar("RowType", bound=Row)
DialogType = TypeVar("DialogType", Conversation, PreferencePair)
NUM_ROWS = 2  # trained on, and evaluated on
NUM_ROWS_READ = 50  # of a file, among which the rows are chosen
NUM_TOKENS = 4  # of the answer, at most
SMALL_BLOCK = 64  # tokens of a pretraining row, at most

QUESTION = {"role": "user", "content": "Which animal barks?"}
ANSWER = {"role": "assistant", "content": "A dog."}
WORSE_ANSWER = {"role": "assistant", "content": "A tree, or perhaps a stone."}


def run_trial(trial: Trial, model: str, scratch: Path, *, use_cpu: bool) -> None:
    """Raises what the stage would raise with these keys. `model` is a small model; writes into `scratch` only."""
    if trial["stage"] in GENERATING:
        _generate(trial, model, scratch, use_cpu=use_cpu)
    elif trial["stage"] in METHODS or trial["stage"] == "pretrain":
        _train(trial, model, scratch, use_cpu=use_cpu)
    elif trial["stage"] == "rl":
        _reinforce(trial, model, scratch, use_cpu=use_cpu)


def _stage(trial: Trial, scratch: Path, keys: Keys) -> Stage:
    return Stage(trial["step"], scratch, keys, Tracker(scratch, active=False), is_main=True)


def _train(trial: Trial, model: str, scratch: Path, *, use_cpu: bool) -> None:
    """One step of training on two rows, an evaluation before and after it, and the model saved and loaded again."""
    stage_name = trial["stage"]
    method = METHODS.get(stage_name)
    classes = method.arguments if method else pretrain.ARGUMENTS
    defaults = method.defaults if method else pretrain.DEFAULTS
    keys = trial["keys"] | _small_training(trial["keys"], model, scratch, use_cpu=use_cpu)
    check_values(stage_name, keys, where=trial["section"])
    filled = arguments.resolve_batch(keys, default_global=NUM_ROWS)
    own, training, model_config = fill(classes, filled, defaults)
    tokenizer = load_tokenizer(model, needs_template=method is not None)
    stage = _stage(trial, scratch, keys)
    if method is None:
        table = _table(pretrain.blocks(["word " * SMALL_BLOCK * 4], tokenizer, size=SMALL_BLOCK)[:NUM_ROWS])
        make_trainer: Callable[..., Any] = pretrain.make_trainer
    else:
        limits = {"max_length": training.max_length, "positions": max_positions(read_config(model))}
        table = _table(_token_rows(method, trial, own, tokenizer, **limits))
        make_trainer = method.make_trainer
    trainer = make_trainer(stage, own, training, model_config, tokenizer, table, table)
    train_and_save(trainer, model_config)


def _reinforce(trial: Trial, model: str, scratch: Path, *, use_cpu: bool) -> None:
    """One window of answers to one prompt and one step on them, with an evaluation before and after.

    The reward is the answer's length: a recipe's functions are not called, and its reward model may not exist yet. This
    process samples, not vLLM.
    """
    keys = trial["keys"] | _small_training(trial["keys"], model, scratch, use_cpu=use_cpu)
    rewards = {"reward_model": None, "reward_functions": [f"{__name__}:length"], "reward_weights": None}
    keys |= rewards | {"engine": "transformers", "vllm": None}
    keys |= {"num_reference_answers": 1, "num_eval_answers": 1, "steps_per_window": 1, "kl_budget": None}
    keys["max_completion_length"] = min(NUM_TOKENS, keys.get("max_completion_length") or NUM_TOKENS)
    answers = keys.get("num_generations") or 8
    keys |= {"global_batch_size": answers, "per_device_train_batch_size": answers}
    check_values("rl", keys, where=trial["section"])
    own, training, model_config = fill(rl.ARGUMENTS, arguments.resolve_batch(keys, default_global=answers), rl.DEFAULTS)
    sample = Prompt.model_validate({"prompt": [QUESTION]})
    prompts = [*first_rows(trial["rows"], Prompt), sample][:1]
    stage, tokenizer = _stage(trial, scratch, keys), load_tokenizer(model)
    train_and_save(rl.make_trainer(stage, own, training, model_config, tokenizer, prompts, prompts), model_config)


def length(prompt: object, answer: str, ended: bool) -> float:
    """The reward of `_reinforce`."""
    return float(len(answer))


def _small_training(keys: Keys, model: str, scratch: Path, *, use_cpu: bool) -> Keys:
    """The keys that make a training short. All others are the recipe's own."""
    small: Keys = {
        "model_name_or_path": model,
        "train_data": [],
        "eval_data": None,
        "output_dir": str(scratch / "checkpoints"),
        "global_batch_size": NUM_ROWS,
        "per_device_train_batch_size": NUM_ROWS,
        "max_steps": 1,
        "eval_steps": 1,
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "torch_compile": False,  # minutes
        "push_to_hub": False,
    }
    if keys.get("reference_model"):
        small["reference_model"] = model
    if keys.get("tokenizer_name_or_path"):
        small["tokenizer_name_or_path"] = model
    if use_cpu:
        small["use_cpu"] = True
    return small


def _token_rows(
    method: Method,
    trial: Trial,
    own: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    positions: int | None,
) -> list[TokenRow]:
    """Two rows that fit: of the recipe's data where there are any, else of a sample. `positions` are the model's, in
    tokens. Raises ConfigError where rows are longer."""
    encode, _ = method.encoder(tokenizer, own)

    def encoded(rows: list[DialogType], sample: DialogType) -> list[TokenRow]:
        token_rows, _ = encode_all(
            "train",
            rows,
            encode,
            tokenizer,
            max_length=max_length,
            on_long_row=own.on_long_row,
            on_bad_row="set_aside",
            max_positions=positions,
        )
        if len(token_rows) < NUM_ROWS:
            token_rows, _ = encode_all("train", [sample] * NUM_ROWS, encode, tokenizer, max_length=None)
        return token_rows[:NUM_ROWS]

    if trial["stage"] == "sft":
        dialog = Conversation.model_validate({"messages": [QUESTION, ANSWER]})
        return encoded(first_rows(trial["rows"], Conversation), dialog)
    pair = PreferencePair.model_validate({"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [WORSE_ANSWER]})
    return encoded(first_rows(trial["rows"], PreferencePair), pair)


def first_rows(files: Sequence[str], row_type: type[RowType]) -> list[RowType]:
    """The first NUM_ROWS_READ rows of files that prepare_data wrote. A file of a million rows is not read further."""
    lines = itertools.chain.from_iterable(map(_first_lines, files))
    return [row_type.model_validate_json(line) for line in itertools.islice(lines, NUM_ROWS_READ)]


def _first_lines(file: str) -> list[bytes]:
    with Path(file).open("rb") as stream:
        return list(itertools.islice(stream, NUM_ROWS_READ))


def _table(rows: Sequence[TokenRow | TokenDialog]) -> Dataset:
    return Dataset.from_list([row.columns() for row in rows])


def _generate(trial: Trial, model: str, scratch: Path, *, use_cpu: bool) -> None:
    """One answer to one prompt, by the engine in this process."""
    inputs = {"policies": [model], "prompts": [], "reward_model": model, "model_name_or_path": model}
    inputs |= {"paraphrase_llm": model}
    classes = GENERATING[trial["stage"]]
    names = {item.name for cls in classes for item in dataclasses.fields(cls)}
    keys = trial["keys"] | {name: value for name, value in inputs.items() if name in names}
    keys["max_new_tokens"] = min(NUM_TOKENS, keys.get("max_new_tokens", NUM_TOKENS))
    if use_cpu:
        keys["use_cpu"] = True
    (own,) = fill(classes, keys, {})
    if own.engine != "transformers":
        return  # vLLM has a separate environment, and takes a minute to start
    prompts = first_rows(trial["rows"], Prompt)
    request: tuple[Prompt, float | None] = ([*prompts, Prompt.model_validate({"prompt": [QUESTION]})][0], None)
    if trial["stage"] == "rejection_sampling":
        request = rejection_sampling.request_for(request[0], own)
    if trial["stage"] == "paraphrase":
        request = (paraphrase.question_prompt(paraphrase_question(last_user_text(request[0]))), None)
    settings = SamplingSettings.of(own, purpose="preflight")
    sample_in_turn(_stage(trial, scratch, keys), [Policy(model, "small")], [request], settings, num_answers=1)
