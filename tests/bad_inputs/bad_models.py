"""Bad models, tokenizers and checkpoints, given to the stages that read them, and rows that no model supports."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, ByT5Tokenizer, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, LlamaModel

from commands.check import check_step
from data_schemas.rows import Message
from engine.models import verification
from engine.models.loading import load_causal, load_reward
from engine.tokens.template import CHATML, encode_dialog
from engine.training.checkpoints import Progress, publish
from tests.bad_inputs.bad_rows import ANSWER, USER
from tests.bad_inputs.cases import Call, Case, Place

PLAIN = verification.Comparison(is_reward_model=False, device="cpu", autocast=None, tolerance=0.0)
SCORES = """
import time
def text(prompt, answer, ended): return "good"
def infinite(prompt, answer, ended): return float("inf")
def raises(prompt, answer, ended): raise KeyError("a\\nb")
def slow(prompt, answer, ended): time.sleep(5)
def same(prompt, answer, ended): return 0.5
"""


# -- valid inputs --------------------------------------------------------------------------------------------------


def model(place: Place, name: str = "model", *, kind: str = "tiny_model") -> Path:
    """A copy of a model that the tests share."""
    return Path(shutil.copytree(place.shared(kind), place.folder / name))


def sft(place: Place, **keys: Any) -> dict[str, Any]:
    rows = place.folder_of("rows")
    return {
        "model_name_or_path": "model",
        "train_data": [rows / "conversations.jsonl"],
        "eval_data": [rows / "conversations_eval.jsonl"],
        **keys,
    }


def dpo(place: Place, **keys: Any) -> dict[str, Any]:
    rows = place.folder_of("rows")
    return sft(place, train_data=[rows / "pairs.jsonl"], eval_data=[rows / "pairs_eval.jsonl"]) | keys


def annotate(place: Place, **keys: Any) -> dict[str, Any]:
    place.write("scores.py", SCORES)
    prompts = place.write("prompts.jsonl", [{"prompt": f"question {number}"} for number in range(2)])
    return {
        "policies": ["model"],
        "prompts": [prompts],
        "annotator_function": "scores:same",
        "max_new_tokens": 2,
        "keep_unfinished": True,
        **keys,
    }


def average(place: Place, **keys: Any) -> dict[str, Any]:
    rows = place.folder_of("rows")
    return {
        "models": ["model", "other"],
        "averaged_stage": "sft",
        "eval_data": [rows / "conversations_eval.jsonl"],
        **keys,
    }


KEYS = {"sft": sft, "dpo": dpo, "reward_model": dpo, "annotate": annotate, "average_models": average}


# -- how they are damaged ------------------------------------------------------------------------------------------


Spoil = Callable[[Path], Any]


def of_model(stage: str, spoil: Spoil, *, kind: str = "tiny_model", **keys: Any) -> Callable[[Place], Call]:
    """A stage with a damaged model."""

    def make(place: Place) -> Call:
        spoil(model(place, kind=kind))
        given = KEYS[stage](place) if stage in KEYS else {"model_name_or_path": "model"}
        return place.stage(stage, **given | keys)

    return make


def of_rows(stage: str, rows: list[Any], **keys: Any) -> Callable[[Place], Call]:
    """A training stage with given rows."""

    def make(place: Place) -> Call:
        model(place)
        place.write("rows.jsonl", rows)
        return place.stage(stage, **KEYS[stage](place) | {"train_data": ["rows.jsonl"]} | keys)

    return make


def as_it_is(folder: Path) -> None:
    pass


def with_learned_positions(folder: Path) -> None:
    """Replaces the model by a GPT-2 with 64 positions."""
    size = len(AutoTokenizer.from_pretrained(folder))
    config = GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(folder)


def as_gemma(folder: Path) -> None:
    """Replaces the configuration by one of Gemma 3, with other rotary positions in local than in global layers."""
    size = len(AutoTokenizer.from_pretrained(folder))
    Gemma3TextConfig(vocab_size=size, hidden_size=16, num_hidden_layers=2).save_pretrained(folder)


def put(name: str, content: Any) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def drop(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink() for name in names]


def change(name: str, **entries: Any) -> Spoil:
    """Changes entries of a JSON file."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return spoil


def tensors(edit: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        loaded = load_file(folder / "model.safetensors")
        edit(loaded)
        save_file(loaded, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def to_nan(loaded: dict[str, Any]) -> None:
    loaded["model.norm.weight"] = loaded["model.norm.weight"] * math.nan


def without_fast_tokenizer(folder: Path) -> None:
    drop("tokenizer.json", "tokenizer_config.json")(folder)
    slow = ByT5Tokenizer()
    slow.save_pretrained(folder)


def cut(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50])


# -- cases with several damaged files -------------------------------------------------------------------------------


def of_parts(spoil: Spoil, spoil_first: Spoil = as_it_is, **keys: Any) -> Callable[[Place], Call]:
    """average_models of a complete model and a damaged one."""

    def make(place: Place) -> Call:
        spoil_first(model(place))
        spoil(model(place, "other"))
        return place.stage("average_models", **average(place, **keys))

    return make


def with_steps(number: int) -> Spoil:
    """A tensor of integers, which has no mean."""
    return tensors(lambda loaded: loaded.update(steps=torch.tensor([number])))


def only_bad_rows(place: Place) -> Call:
    model(place)
    model(place, "other")
    place.write("rows.jsonl", [{"messages": []}])
    return place.stage(
        "average_models", **average(place, eval_data=["rows.jsonl"], stage_keys={"on_bad_row": "set_aside"})
    )


def of_two_processes(place: Place) -> Call:
    """A checkpoint that two processes wrote."""
    model(place)
    place.write("out/checkpoints/.saving/checkpoint-2/weights", "w")
    place.write("out/checkpoints/best-0/weights", "w")
    publish(place.folder / "out" / "checkpoints", Progress(2, best_step=0, num_tokens=1, processes=2))
    return place.stage("sft", **sft(place))


def pretrain(spoil: Spoil | None = None, **keys: Any) -> Callable[[Place], Call]:
    def make(place: Place) -> Call:
        if spoil is not None:
            spoil(model(place))
        rows = [{"text": f"text {number}"} for number in range(20)]
        place.write("rows.jsonl", rows)
        place.write("eval.jsonl", [{"text": "another text of some length"}] * 9)
        return place.stage(
            "pretrain",
            **{"train_data": ["rows.jsonl"], "eval_data": ["eval.jsonl"], "block_size": 8, "vocab_size": 280} | keys,
        )

    return make


def muon_under_deepspeed(place: Place) -> Call:
    from trl import ModelConfig, SFTConfig

    from stages import pretrain

    place.patch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    arguments = pretrain.PretrainArguments(train_data=["t"], architecture={"a": 1}, muon_learning_rate=0.1)
    return place.function(pretrain.main, None, arguments, SFTConfig.__new__(SFTConfig), ModelConfig())


def skipping_under_zero(place: Place) -> Call:
    from trl import ModelConfig

    from engine.runtime.arguments import TrainingStageArguments
    from engine.training.run import train_and_save

    arguments = TrainingStageArguments(train_data=["t"], on_bad_step="skip")
    trainer = SimpleNamespace(is_deepspeed_enabled=True, stage_arguments=arguments)
    return place.function(train_and_save, trainer, ModelConfig())


def without_an_answer(place: Place) -> Call:
    return place.function(encode_dialog, place.shared("tokenizer"), [Message(role="user", content="q")])


def pickled(place: Place) -> Call:
    """A base whose weights are pickled, before anything is launched."""
    drop("model.safetensors")(model(place))
    put("pytorch_model.bin", b"")(place.folder / "model")
    return place.alignloop("plan", *place.recipe("base_model=model"))


def checked_rows(place: Place) -> Call:
    """`alignloop check` on toy dialogs."""
    model(place)
    return place.alignloop("check", *place.recipe("base_model=model"))


def of_constant_rewards(stage: str) -> Callable[[Place], Call]:
    """A reward model that gives every answer the same score, trained or used for voting."""

    def make(place: Place) -> Call:
        model(place)
        reward_model: Any = load_reward(str(model(place, "rewards")))
        reward_model.score.weight.data.zero_()
        reward_model.save_pretrained(place.folder / "rewards")
        if stage == "annotate":
            return place.stage(stage, **annotate(place, annotator_function=None, annotator_models=["rewards"]))
        return place.stage(stage, **dpo(place, model_name_or_path="rewards"))

    return make


def of_little_memory(stage: str, most: int, **keys: Any) -> Callable[[Place], Call]:
    """More rows at a time than `most` fill the device's memory."""

    def make(place: Place) -> Call:
        model(place)
        whole = LlamaModel.forward

        def forward(self: Any, input_ids: Any = None, *given: Any, **options: Any) -> Any:
            if len(input_ids) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return whole(self, input_ids, *given, **options)

        place.patch.setattr(LlamaModel, "forward", forward)
        return place.stage(stage, **KEYS[stage](place) | keys)

    return make


def with_two_bos(folder: Path) -> None:
    change("tokenizer_config.json", bos_token="<|endoftext|>")(folder)
    put("chat_template.jinja", "{{ bos_token }}{{ bos_token }}" + CHATML)(folder)


def checked(place: Place) -> Call:
    """What `alignloop check` shows of a step whose rows are all too long."""
    rows = place.folder_of("rows")
    keys = {"train_data": [str(rows / "conversations.jsonl")], "eval_data": [str(rows / "conversations_eval.jsonl")]}
    asked = {"step": "sft", "stage": "sft", "keys": keys | {"max_length": 3}}
    return place.function(check_step, asked, place.shared("tokenizer"), place.folder, Console(quiet=True), show=1)


def of_saved(spoil: Spoil, check: str = "check_weights") -> Callable[[Place], Call]:
    """A saved model that only an error in our code can leave."""

    def make(place: Place) -> Call:
        folder = model(place)
        if check == "check_weights":
            spoil(folder)
            return place.function(verification.check_weights, folder)
        rows = [[5, 6, 7]]
        outputs = verification.outputs_of(load_causal(str(folder)), rows, device=torch.device("cpu"))
        save_file(verification.as_tensors(rows, outputs), place.folder / verification.PROBE)
        spoil(folder)
        return place.function(verification.check_saved, folder, place.folder / verification.PROBE, PLAIN)

    return make


CASES = [
    # -- models
    Case("model that is not there", of_model("sft", shutil.rmtree), "model has no tokenizer that can be read"),
    Case(
        "attention without gradients",
        of_model("sft", as_it_is, attn_implementation="flex_attention"),
        "attn_implementation=flex_attention has no gradients on a CPU; leave the key out there",
    ),
    Case(
        "model that is empty",
        of_model("sft", lambda folder: [path.unlink() for path in folder.iterdir()]),
        "model has no tokenizer that can be read",
    ),
    Case("tokenizer that is cut", of_model("sft", cut("tokenizer.json")), "model has no tokenizer that can be read"),
    Case("tokenizer that is empty", of_model("sft", put("tokenizer.json", "{}")), "model has no tokenizer that can be"),
    Case(
        "tokenizer that is slow",
        of_model("prepare_base", without_fast_tokenizer),
        "the tokenizer has no fast version (tokenizer.json), which the token masks need",
    ),
    Case(
        "base whose tokenizer is cut",
        of_model("prepare_base", cut("tokenizer.json"), kind="tiny_base"),
        "model has no tokenizer that can be read",
    ),
    Case(
        "model without a template",
        of_model("sft", as_it_is, kind="tiny_base"),
        "model has no chat template; give it as base_model of a recipe, which prepares it, or run",
    ),
    Case(
        "model whose pad token is its end token",
        of_model("sft", change("tokenizer_config.json", pad_token="<|im_end|>")),
        "model has no pad token, or uses its end token as one; give it as base_model of a recipe, which",
    ),
    Case("model without a config", of_model("annotate", drop("config.json")), "model is not a model folder (no"),
    Case(
        "model whose config is cut",
        of_model("annotate", cut("config.json")),
        "model has no tokenizer that can be read (It looks like the config file at 'model/config.json' is not a",
    ),
    Case("config of no model", of_model("annotate", put("config.json", "{}")), "model: config.json has no model_type"),
    Case(
        "config of another kind",
        of_model("annotate", change("config.json", model_type="lama")),
        "model_type='lama' is no type of model that the installed transformers knows; did you mean 'llama'?",
    ),
    Case(
        "config of many layers",
        of_model("annotate", change("config.json", num_hidden_layers=9_000, hidden_size=4096)),
        "model: config.json describes a model of at least 1.5e+11 parameters, but the weights beside it have 1.6e+05",
    ),
    Case(
        "config of a million layers",
        of_model("prepare_base", change("config.json", num_hidden_layers=1_000_000)),
        "model: config.json: num_hidden_layers=1000000: expected a number 1 or more, at most 10000",
    ),
    Case(
        "tokenizer of another model",
        of_model("annotate", change("config.json", vocab_size=200)),
        "the tokenizer has 300 tokens, and config.json says that the embeddings have vocab_size=200 rows; expected a",
    ),
    Case(
        "base with the tokenizer of another model",
        of_model("prepare_base", change("config.json", vocab_size=200), kind="tiny_base"),
        "config.json says that the embeddings have vocab_size=200 rows; expected a row for each token: use the",
    ),
    Case(
        "architecture beyond the memory",
        pretrain(architecture={"hidden_size": 1_000_000, "num_hidden_layers": 9_000}),
        "architecture: the weights of such a model have at least 3.6e+16 bytes, and this machine's memory has",
    ),
    Case(
        "config of other sizes",
        of_model("annotate", change("config.json", hidden_size=64, head_dim=32)),
        "model cannot be loaded as a model (",
    ),
    Case("model without weights", of_model("annotate", drop("model.safetensors")), "model cannot be loaded as a model"),
    Case("weights that are cut", of_model("annotate", cut("model.safetensors")), "model cannot be loaded as a model ("),
    Case(
        "weights that are text",
        of_model("annotate", put("model.safetensors", "weights")),
        "but the weights beside it have 7.0e+00 bytes",
    ),
    Case(
        "weights that are not all there",
        of_model("annotate", tensors(lambda loaded: loaded.pop("model.norm.weight"))),
        "model is not complete: it lacks 1 tensors, such as model.norm.weight",
    ),
    Case(
        "weights that are pickled",
        pickled,
        "base_model=HERE/model has no weights in safetensors; loading pytorch_model.bin could run code stored",
    ),
    Case(
        "model with code of its own",
        of_model("annotate", change("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"})),
        "model contains its own code, which is run only with trust_remote_code: true",
    ),
    Case(
        "reward model of one score",
        of_constant_rewards("annotate"),
        "the reward model rewards gives each of 4 different answers the score 0: its rewards have collapsed to a",
        1,
    ),
    Case(
        "rewards that do not train",
        of_constant_rewards("reward_model"),
        "step 0: the rewards have collapsed to a constant: in every held-out row all answers have the reward 0. Lower",
        1,
    ),
    Case(
        "template that writes two BOS tokens",
        of_model("sft", with_two_bos),
        "train: every row begins with two BOS tokens: the chat template writes one too many",
    ),
    Case("rows to look at that are bad", checked_rows, "prepare_data: HERE/chats.jsonl:1: messages: found no"),
    Case("rows to look at that are too long", checked, "train: nothing is left of 24 rows"),
    Case(
        "weights that are nan",
        of_model("prepare_base", tensors(to_nan)),
        "model.safetensors: model.norm.weight is nan or infinite",
        1,
    ),
    Case("weights that train to nan", of_model("sft", tensors(to_nan)), "step 1: the loss is nan; training rows ", 1),
    Case(
        "weights that are nan at every step",
        of_model("sft", tensors(to_nan), on_bad_step="skip", max_steps=1),
        "eval_loss is nan or infinite at every evaluation",
        1,
    ),
    Case(
        "reference that is not there",
        of_model("dpo", as_it_is, reference_model="gone"),
        "gone cannot be loaded as a model (",
    ),
    # -- rows that no model supports
    Case(
        "dialogs on both sides",
        of_rows("sft", [{"messages": [USER, ANSWER]}], eval_data=["rows.jsonl"]),
        "1 dialogs are both in train_data and in eval_data; split them by prompt",
    ),
    Case(
        "no held-out row",
        of_rows("sft", [{"messages": [USER, ANSWER]}], eval_data=None, validation_share=0.0),
        "sft: no row is left for eval_data (of rows.jsonl)",
    ),
    Case(
        "share without a file",
        of_rows("sft", [{"messages": [USER, ANSWER]}], train_data_shares=[0.5, 0.5]),
        "sft: 2 shares for 1 files of data; give one share for each file",
    ),
    Case(
        "rows that are too long",
        of_rows("sft", [{"messages": [USER, ANSWER]}], max_length=2),
        "train: nothing is left of 1 rows (dropped_too_long 1)",
    ),
    Case(
        "rows that fill no batch",
        of_rows("sft", [{"messages": [USER, ANSWER]}], global_batch_size=8, packing=True),
        "1 training rows are fewer than one global_batch_size=8; lower global_batch_size to 1 or less, or give more",
    ),
    Case(
        "pairs of no level that trains",
        of_rows("dpo", [{"prompt": "q", "chosen": "a", "rejected": "b", "strength": "marginally_better"}]),
        "dpo: all 1 training pairs are dropped (strength 1); see strengths and max_similarity",
    ),
    Case(
        "row that is too long",
        of_rows("sft", [{"messages": [USER, ANSWER]}], max_length=2, on_long_row="error"),
        "train row 1: ",
    ),
    # -- memory
    Case(
        "memory for fewer rows",
        of_little_memory("sft", 4, padding_free=False),
        "out of memory with per_device_eval_batch_size=8: it is 4 from now on, the result stays",
        1,
    ),
    Case(
        "memory for no row",
        of_little_memory("sft", 0, per_device_eval_batch_size=1),
        "out of memory with per_device_eval_batch_size=1, and one row can't be halved: lower max_length",
        1,
    ),
    Case(
        "memory for fewer answers",
        of_little_memory("annotate", 1),
        "out of memory with generation_batch_size=32: lower generation_batch_size, which is part of the step's",
        1,
    ),
    Case(
        "answers beyond learned positions",
        of_model("annotate", with_learned_positions, max_new_tokens=62),
        "max_new_tokens=62 exceed the model's 64 positions; set max_new_tokens: ",
    ),
    # -- averages
    Case("part that is not there", of_parts(shutil.rmtree), "other is not a model folder (no config.json); an average"),
    Case("part without safetensors", of_parts(drop("model.safetensors")), "other holds no safetensors; save the model"),
    Case("part of other sizes", of_parts(change("config.json", rope_theta=7.0)), "model and other cannot be averaged:"),
    Case(
        "part that counts",
        of_parts(with_steps(2), with_steps(1)),
        "model and other cannot be averaged: steps holds torch.int64 and differs",
    ),
    Case(
        "parts with fewer positions than a row's tokens",
        of_parts(*[change("config.json", max_position_embeddings=4)] * 2),
        "rows are longer than the model's 4 positions, the longest has",
    ),
    Case("part that is nan", of_parts(tensors(to_nan)), "the average's eval_loss is nan or infinite", 1),
    Case("parts without a held-out row", only_bad_rows, "average_models: no row is left for eval_data (of rows.jsonl)"),
    # -- pretraining
    Case("nothing to pretrain", pretrain(), "pretrain needs architecture (random weights) or model_name_or_path (to"),
    Case("architecture of no kind", pretrain(architecture={"model_type": "lama"}), "architecture: "),
    Case("architecture of no size", pretrain(architecture={"hidden_size": "big"}), "architecture: "),
    Case(
        "architecture of sizes that do not fit",
        pretrain(architecture={"hidden_size": 33, "num_attention_heads": 2}),
        "architecture: ",
    ),
    Case(
        "no document held out",
        pretrain(architecture={"hidden_size": 32}, eval_data=None, validation_share=0.0),
        "no document is held out of 20: give eval_data, or a larger validation_share",
    ),
    Case(
        "tokenizer without an end token",
        pretrain(
            change("tokenizer_config.json", eos_token=None), tokenizer_name_or_path="model", architecture={"a": 1}
        ),
        "the tokenizer of model has no end token (eos_token), which separates documents",
    ),
    Case(
        "attention that cannot be kept within documents",
        pretrain(
            architecture={"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
            global_batch_size=1,
        ),
        "the attention of this architecture cannot be kept within documents: set mask_documents: false",
    ),
    Case(
        "rotary positions of random weights",
        pretrain(architecture={"hidden_size": 32}, rope_theta=5e5),
        "rope_theta and rope_scaling change a model that is pretrained further; with random weights write architecture",
    ),
    Case(
        "rotary positions of a model without any",
        pretrain(with_learned_positions, model_name_or_path="model", rope_theta=5e5),
        "rope_theta: the model (gpt2) has no rotary positions; leave it out",
    ),
    Case(
        "rotary positions that differ by layer",
        pretrain(as_gemma, model_name_or_path="model", rope_theta=5e5),
        "rope_theta: the layers of the model (gemma3_text) have different rotary positions, which it cannot set",
    ),
    Case(
        "scaling of no kind",
        pretrain(model_name_or_path="model", rope_scaling={"rope_type": "yarm"}),
        "expected rope_type with one of linear, dynamic, yarn, longrope, llama3, as in {rope_type: yarn, factor: 4.0}",
    ),
    Case(
        "scaling without its factor",
        pretrain(as_it_is, model_name_or_path="model", rope_scaling={"rope_type": "yarn"}),
        "rope_scaling={'rope_type': 'yarn'}: Missing required keys in `rope_parameters` for 'rope_type'='yarn': ",
    ),
    Case(
        "Muon under DeepSpeed", muon_under_deepspeed, "muon_learning_rate does not work under DeepSpeed, which creates"
    ),
    # -- checks that no stage reaches without DeepSpeed, or before it has read its rows
    Case("skipped steps under ZeRO", skipping_under_zero, "on_bad_step: skip is not supported by ZeRO, whose engine"),
    Case("dialog without an answer", without_an_answer, "the dialog has no assistant turn to train"),
    # -- checkpoints, and what was saved
    Case(
        "checkpoint of two processes",
        of_two_processes,
        "checkpoint-2 was written by 2 processes and this run has 1: run",
    ),
    Case("no weights were saved", of_saved(drop("model.safetensors")), "model holds no weights", 1),
    Case(
        "a tensor was saved empty",
        of_saved(tensors(lambda loaded: loaded.update(x=loaded["model.norm.weight"][:0]))),
        "model.safetensors: x is empty",
        1,
    ),
    Case(
        "a tensor was not saved",
        of_saved(put("model.safetensors.index.json", '{"weight_map": {"x": "y"}}')),
        "lacks 1 tensors, such as x",
        1,
    ),
    Case(
        "a model was saved without a tensor",
        of_saved(tensors(lambda loaded: loaded.pop("model.norm.weight")), "check_saved"),
        'the saved model is not complete: {"missing_keys": ["model.norm.weight"]}',
        1,
    ),
    Case(
        "a model was saved otherwise",
        of_saved(tensors(lambda loaded: loaded["model.norm.weight"].mul_(2)), "check_saved"),
        "the saved model is not the trained one: after row 1 of the held-out rows their outputs differ by up to",
        1,
    ),
]
