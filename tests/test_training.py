"""The training loop around TRL's trainers: when it evaluates, what it keeps, how it resumes, what changes nothing."""

import importlib
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import call_stage, metrics_of, run_here, tiny_llama, weights_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from engine.models import loading
from engine.models.lora import merge_adapter
from engine.runtime.tracking import Tracker
from engine.training import loop, optimizers
from engine.training.global_batches import GlobalBatches, balanced
from engine.training.loop import best_step
from engine.training.optimizers import Muon, MuonAdamW

STAGES = ("sft", "reward_model", "dpo")


def data(rows: Path, stage: str) -> dict[str, Any]:
    kind = "conversations" if stage == "sft" else "pairs"
    return {"train_data": [rows / f"{kind}.jsonl"], "eval_data": [rows / f"{kind}_eval.jsonl"]}


def steps_with(folder: Path, key: str) -> list[int]:
    return sorted(step for step, name in metrics_of(folder) if name == key)


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# -- evaluation and the best model ------------------------------------------------------------------------------------


def test_evaluates_before_the_first_step_at_eval_steps_and_at_the_end(tiny_model, rows, tmp_path):
    record = run_here(
        "sft", tmp_path / "sft", model_name_or_path=tiny_model, max_steps=5, eval_steps=2, **data(rows, "sft")
    )
    losses = {step: metrics_of(tmp_path / "sft")[step, "eval_loss"] for step in (0, 2, 4, 5)}
    assert steps_with(tmp_path / "sft", "eval_loss") == [0, 2, 4, 5]
    assert losses[5] < losses[4] < losses[2] < losses[0]
    assert record.metrics["eval_loss_at_step_0"] == losses[0]
    assert record.metrics["eval_loss"] == losses[5] and record.metrics["best_step"] == 5
    assert record.outputs == {"model": "model"} and not record.missing(tmp_path / "sft")
    assert not (tmp_path / "sft" / "checkpoints").exists()


def test_a_stage_that_made_things_worse_keeps_the_start_and_says_so(tiny_model, rows, tmp_path):
    record = run_here(
        "sft", tmp_path / "sft", model_name_or_path=tiny_model, max_steps=4, learning_rate=50.0, **data(rows, "sft")
    )
    assert record.metrics["best_step"] == 0
    assert record.metrics["eval_loss"] == record.metrics["eval_loss_at_step_0"]
    assert_equal_weights(tmp_path / "sft" / "model", tiny_model)
    assert "no step was better than the start" in (tmp_path / "sft" / "log.txt").read_text()


def test_patience_stops_a_stage_that_no_longer_gets_better(tiny_model, rows, tmp_path):
    record = run_here(
        "sft",
        tmp_path / "sft",
        model_name_or_path=tiny_model,
        max_steps=9,
        eval_steps=1,
        learning_rate=50.0,
        patience=2,
        **data(rows, "sft"),
    )
    assert record.metrics["steps"] == 2
    assert steps_with(tmp_path / "sft", "eval_loss") == [0, 1, 2]


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({0: 2.0, 5: 1.5, 10: 1.6}, 5),
        ({0: 2.0, 5: 2.0}, 0),  # the earlier of two equal ones
        ({0: 2.0, 5: float("nan"), 10: 1.9}, 10),
    ],
)
def test_the_best_step_has_the_lowest_finite_loss(losses, best):
    assert best_step(losses) == best


# -- the same result, however it is run -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_the_micro_batch_changes_nothing(stage, tiny_model, rows, tmp_path):
    """8x1, 4x2 and 2x4 rows a step are the same step, also with DPO's loss of [sigmoid, sft]."""
    results = []
    for micro in (8, 4, 2):
        folder = tmp_path / str(micro)
        run_here(
            stage,
            folder,
            model_name_or_path=tiny_model,
            per_device_train_batch_size=micro,
            eval_steps=3,
            per_device_eval_batch_size=micro,
            optim="sgd",
            learning_rate=0.05,
            **data(rows, stage),
        )
        values = {key: value for key, value in metrics_of(folder).items() if key[1] in ("loss", "eval_loss")}
        results.append((weights_of(folder / "model"), values))
    start = weights_of(tiny_model)
    assert max(float((results[0][0][name] - start[name]).abs().max()) for name in start if name in results[0][0]) > 1e-3
    for weights, values in results[1:]:
        assert values == pytest.approx(results[0][1], abs=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, results[0][0][name], atol=1e-5, rtol=0, msg=name)


def test_a_step_sees_the_same_rows_for_any_number_of_processes():
    """One process of 4 rows a step, or two that take every other row of it: the sampler hands out the steps' rows."""
    sampler = GlobalBatches(11, global_batch_size=4, seed=3)
    first = list(sampler)
    assert len(sampler) == len(first) == 8  # the last 3 rows make no whole step
    assert len(set(first)) == 8 and set(first) < set(range(11))
    assert list(GlobalBatches(11, global_batch_size=4, seed=3)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(GlobalBatches(11, global_batch_size=4, seed=4)) != first


@pytest.mark.parametrize(
    ("num_tokens", "size", "runs"),
    [
        ([9, 8, 1, 1], 2, [[0, 3], [1, 2]]),  # 10 and 9 instead of 17 and 2
        ([5, 4, 3, 2, 1, 1], 2, [[0, 5], [1, 4], [2, 3]]),
        ([5, 4, 3], 3, [[0, 1, 2]]),  # one run: as drawn
    ],
)
def test_a_global_batch_is_divided_so_that_tokens_are_balanced(num_tokens, size, runs):
    made = balanced(range(len(num_tokens)), num_tokens, size=size)
    assert [sorted(made[start : start + size]) for start in range(0, len(made), size)] == [sorted(run) for run in runs]


def test_balancing_moves_no_row_into_another_step():
    drawn = list(GlobalBatches(64, global_batch_size=8, seed=1))
    divided = list(GlobalBatches(64, global_batch_size=8, seed=1, micro_batch_size=2, num_tokens=range(64)))
    assert divided != drawn
    for start in range(0, 64, 8):
        assert sorted(divided[start : start + 8]) == sorted(drawn[start : start + 8])


def test_fewer_rows_than_a_global_batch_is_one_line(tiny_model, rows, tmp_path):
    keys = {"model_name_or_path": tiny_model, "global_batch_size": 32, **data(rows, "sft")}
    assert call_stage("sft", tmp_path / "sft", **keys) == 2
    outcome = read_json(tmp_path / "sft" / "outcome.json")
    assert outcome["kind"] == "config" and outcome["cause"] == (
        "24 training rows are fewer than one global_batch_size=32; lower global_batch_size to 24 or less, "
        "or give more rows"
    )
    with pytest.raises(ConfigError):
        GlobalBatches(3, global_batch_size=4, seed=0)


# -- resume -----------------------------------------------------------------------------------------------------------

RESUME = {"max_steps": 6, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def uninterrupted(tiny_model, rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "sft"
    run_here("sft", folder, model_name_or_path=tiny_model, **RESUME, **data(rows, "sft"))
    return folder


@pytest.fixture(scope="module")
def interrupted(tiny_model, rows, tmp_path_factory) -> Path:
    """The same stage, stopped after its 5th step: checkpoints at 2 and 4, step 5 already logged."""
    folder = tmp_path_factory.mktemp("interrupted") / "sft"
    ends = loop._Track.on_log

    def stop_at_5(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ends(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Track, "on_log", stop_at_5)
        keys = {"model_name_or_path": tiny_model, **RESUME, **data(rows, "sft")}
        assert call_stage("sft", folder, **keys) == 130
    assert read_json(folder / "outcome.json")["state"] == "interrupted"
    assert Artifact.read(folder) is None
    assert {path.name for path in folder.glob("checkpoints/checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert (5, "loss") in metrics_of(folder)
    return folder


@pytest.mark.parametrize("lost", ["nothing", "the marker of the newest checkpoint", "a byte of the newest checkpoint"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    lost, uninterrupted, interrupted, tiny_model, rows, tmp_path
):
    folder = tmp_path / "sft"
    shutil.copytree(interrupted, folder)
    resumed_from = 4
    newest = folder / "checkpoints" / "checkpoint-4"
    if lost != "nothing":
        resumed_from = 2
    if lost == "the marker of the newest checkpoint":
        (newest / "whole.json").unlink()
        # What a killed process leaves: files cut off. To load them would be an error.
        (newest / "optimizer.pt").write_bytes(b"cut")
    if lost == "a byte of the newest checkpoint":
        content = bytearray((newest / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "model.safetensors").write_bytes(content)
    run_here("sft", folder, model_name_or_path=tiny_model, **RESUME, **data(rows, "sft"))
    logged = (folder / "log.txt").read_text()
    assert f"resuming from step {resumed_from}\n" in logged
    assert ("checkpoint-4 is not resumed from: " in logged) == (lost != "nothing")
    assert_equal_weights(folder / "model", uninterrupted / "model")
    assert metrics_of(folder) == metrics_of(uninterrupted)


@pytest.mark.parametrize(
    ("where", "step", "saved", "is_due"),
    [
        ("on_step_end", 5, 5, False),
        ("on_step_end", 4, 4, True),  # of which an evaluation is due
        ("on_log", 4, 4, True),  # the evaluation comes next
        ("on_log", 5, 6, True),
        ("on_prediction_step", 4, 4, True),
        ("on_prediction_step", 6, 6, True),  # the last step
        ("on_prediction_step", 0, None, False),
    ],
)
def test_sigterm_is_answered_by_a_checkpoint_from_which_everything_is_the_same(
    where, step, saved, is_due, uninterrupted, tiny_model, rows, tmp_path, monkeypatch
):
    folder, keys = tmp_path / "sft", {"model_name_or_path": tiny_model, **RESUME, **data(rows, "sft")}
    own = getattr(loop._Track, where)

    def signalled(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        own(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Track, where, signalled)
        assert call_stage("sft", folder, **keys) == 143
    outcome = read_json(folder / "outcome.json")
    assert outcome["kind"] == "preempted"
    assert outcome["hint"] == f"run me again: training goes on from step {saved or 0}"
    assert "SIGTERM would have been answered within" in (folder / "log.txt").read_text()
    steps = {int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoints/checkpoint-*")}
    assert max(steps, default=None) == saved
    if saved:
        assert read_json(folder / "checkpoints" / f"checkpoint-{saved}" / "whole.json")["evaluation_is_due"] is is_due

    run_here("sft", folder, **keys)
    assert_equal_weights(folder / "model", uninterrupted / "model")
    wanted = {key: value for key, value in metrics_of(uninterrupted).items() if key[1].startswith("eval_")}
    found = {key: value for key, value in metrics_of(folder).items() if key[1].startswith("eval_")}
    assert found == wanted
    mine, whole = Artifact.read(folder), Artifact.read(uninterrupted)
    assert mine is not None
    assert whole is not None
    assert mine.metrics == whole.metrics


def test_a_second_sigterm_in_an_evaluation_that_was_left_over_leaves_the_checkpoint_alone(
    uninterrupted, tiny_model, rows, tmp_path, monkeypatch
):
    folder, keys = tmp_path / "sft", {"model_name_or_path": tiny_model, **RESUME, **data(rows, "sft")}
    own = loop._Track.on_prediction_step

    def signalled(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        own(self, args, state, control, **kwargs)

    marker, written = folder / "checkpoints" / "checkpoint-4" / "whole.json", []
    with monkeypatch.context() as patch:
        patch.setattr(loop._Track, "on_prediction_step", signalled)
        for _ in range(2):
            assert call_stage("sft", folder, **keys) == 143
            written.append(marker.stat().st_ino)
    assert written[0] == written[1]
    run_here("sft", folder, **keys)
    assert_equal_weights(folder / "model", uninterrupted / "model")


# -- LoRA and tied weights --------------------------------------------------------------------------------------------


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("stage", STAGES)
def test_lora_leaves_a_merged_plain_model(stage, tiny_model, rows, tmp_path):
    from peft import PeftModel

    folder = tmp_path / stage
    record = run_here(
        stage,
        folder,
        model_name_or_path=tiny_model,
        use_peft=True,
        learning_rate=1e-2,
        keep_checkpoints=True,
        **data(rows, stage),
    )
    best = record.metrics["best_step"]
    assert best != 0
    adapter, plain = folder / "checkpoints" / f"best-{best}", folder / "model"
    assert (adapter / "adapter_config.json").exists()
    assert not list(plain.glob("adapter*")) and (plain / "tokenizer.json").exists()
    if stage == "reward_model":
        base, merged = loading.load_reward(str(tiny_model)), AutoModelForSequenceClassification.from_pretrained(plain)
        assert merged.config.num_labels == 1 and merged.config.pad_token_id is not None
        assert "score.weight" in weights_of(plain)
        merge_adapter(
            str(tiny_model), adapter, tmp_path / "apart", is_reward_model=True, dtype="float32", in_own_process=True
        )
        assert_equal_weights(tmp_path / "apart", plain)
    else:
        base, merged = loading.load_causal(str(tiny_model)), AutoModelForCausalLM.from_pretrained(plain)
    start = logits(base).clone()
    torch.testing.assert_close(logits(merged), logits(PeftModel.from_pretrained(base, adapter)), atol=1e-5, rtol=1e-5)
    assert float((logits(merged) - start).abs().max()) > 1e-3
    assert record.metrics["eval_loss"] < record.metrics["eval_loss_at_step_0"]
    if stage == "dpo":  # the reference is the model without its adapters: at the start no pair has a margin
        assert metrics_of(folder)[0, "eval_rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_tied_weights_come_back_as_they_were_trained(tied_model, rows, tmp_path, monkeypatch):
    trained = {}
    finish = loop.check_weights
    trainers = []
    wrapped = loop.train_and_save

    def keep(stage: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        trainers.append(trainer)
        return wrapped(stage, trainer, *args, **kwargs)

    for stage in ("sft", "reward_model"):
        monkeypatch.setattr(f"stages.{stage}.train_and_save", keep)
        record = run_here(stage, tmp_path / stage, model_name_or_path=tied_model, **data(rows, stage))
        assert record.metrics["best_step"] == 3  # the trainer's model at its end is the saved one
        trained[stage] = logits(trainers[-1].model)
        finish(tmp_path / stage / "model")
    sft = AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "model")
    assert sft.get_input_embeddings().weight is sft.get_output_embeddings().weight
    torch.testing.assert_close(logits(sft), trained["sft"], atol=1e-6, rtol=0)
    scores = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model" / "model")
    torch.testing.assert_close(logits(scores), trained["reward_model"], atol=1e-6, rtol=0)


# -- pretraining, packing ---------------------------------------------------------------------------------------------


def test_pretraining_from_random_weights_lowers_the_loss(rows, tmp_path):
    architecture = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    record = run_here(
        "pretrain",
        tmp_path / "pretrain",
        train_data=[rows / "documents.jsonl"],
        architecture=architecture,
        vocab_size=300,
        special_tokens=["<|im_start|>"],
        block_size=16,
        validation_share=0.2,
        max_steps=20,
        muon_learning_rate=0.02,
        learning_rate=1e-2,
    )
    assert record.metrics["eval_loss"] < 0.7 * record.metrics["eval_loss_at_step_0"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pretrain" / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pretrain" / "model")
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 300
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer("<|im_start|>")["input_ids"]) == 1


def test_pretraining_continues_from_a_model(tiny_model, rows, tmp_path):
    record = run_here(
        "pretrain",
        tmp_path / "pretrain",
        train_data=[rows / "documents.jsonl"],
        model_name_or_path=tiny_model,
        block_size=16,
        validation_share=0.2,
    )
    assert record.metrics["eval_loss"] < record.metrics["eval_loss_at_step_0"]
    kept = AutoTokenizer.from_pretrained(tmp_path / "pretrain" / "model")
    assert kept.get_vocab() == AutoTokenizer.from_pretrained(tiny_model).get_vocab()


def test_blocks_are_one_stream_with_end_tokens(tokenizer):
    from stages.pretrain import blocks

    texts = ["Rome.", "It is a large city."]
    stream = [id for text in texts for id in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    made = blocks(texts, tokenizer, size=4)
    assert [row["input_ids"] for row in made] == [stream[i : i + 4] for i in range(0, len(stream) // 4 * 4, 4)]
    assert all(row["labels"] == row["input_ids"] for row in made)


def test_pretraining_keeps_attention_within_documents_unless_told_not_to(tiny_model, rows, tmp_path):
    losses = {}
    for mask in (True, False):
        record = run_here(
            "pretrain",
            tmp_path / str(mask),
            train_data=[rows / "documents.jsonl"],
            model_name_or_path=tiny_model,
            block_size=32,
            validation_share=0.2,
            mask_documents=mask,
            learning_rate=3e-3,
            max_steps=4,
        )
        losses[mask] = (record.metrics["eval_loss_at_step_0"], record.metrics["eval_loss"])
    assert losses[True][0] != losses[False][0] and losses[True][1] < losses[True][0]


def test_packing_trains_and_evaluates_without_it(tiny_model, rows, tmp_path):
    keys = {"model_name_or_path": tiny_model, "global_batch_size": 2, "max_steps": 2, **data(rows, "sft")}
    plain = run_here("sft", tmp_path / "plain", **keys)
    packed = run_here("sft", tmp_path / "packed", packing=True, max_length=256, **keys)
    assert packed.metrics["eval_loss"] < packed.metrics["eval_loss_at_step_0"]
    assert packed.metrics["eval_loss_at_step_0"] == pytest.approx(plain.metrics["eval_loss_at_step_0"], abs=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_optimizers_are_fused_by_default(stage, tiny_model, rows, tmp_path, monkeypatch):
    made: list[Any] = []
    module = importlib.import_module(f"stages.{stage}")
    whole = module.train_and_save

    def train_and_save(stage: Any, trainer: Any, *given: Any, **options: Any) -> Any:
        made.append(trainer)
        return whole(stage, trainer, *given, **options)

    monkeypatch.setattr(module, "train_and_save", train_and_save)
    monkeypatch.setattr(loop, "check_trained", lambda *_, **__: None)  # it gives the optimizer back
    run_here(stage, tmp_path / "stage", model_name_or_path=tiny_model, max_steps=1, **data(rows, stage))
    optimizer = made[0].optimizer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.long
def test_dpo_goes_with_torch_compile(tiny_model, rows, tmp_path, monkeypatch):
    """The compiler itself is left out, which takes minutes: what is traced runs as it is. The reference is wrapped too,
    and has no truth value then."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # which the key sets, and the test puts back
    keys = {"model_name_or_path": tiny_model, "max_steps": 1, "optim": "sgd", **data(rows, "dpo")}
    run_here("dpo", tmp_path / "traced", torch_compile=True, torch_compile_backend="eager", **keys)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    run_here("dpo", tmp_path / "plain", **keys)
    traced, plain = (weights_of(tmp_path / name / "model") for name in ("traced", "plain"))
    for name, tensor in plain.items():
        torch.testing.assert_close(traced[name], tensor, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("together", [1, optimizers.TOGETHER])
def test_muon_moves_weights_as_torchs_does(together, monkeypatch):
    """That one computes in bfloat16, so it is a hundredth off; two of one shape must not be mixed up."""
    monkeypatch.setattr(optimizers, "TOGETHER", together)
    torch.manual_seed(1)
    start = [torch.randn(shape) for shape in ((12, 40), (40, 12), (24, 24), (12, 40))]
    gradients = [[torch.randn(weight.shape) for weight in start] for _ in range(3)]

    def moved(kind: type) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(weight.clone()) for weight in start]
        optimizer = kind(weights, lr=0.02, weight_decay=0.1)
        for gradient in gradients:
            for weight, own in zip(weights, gradient, strict=True):
                weight.grad = own
            optimizer.step()
        return [weight.detach() - before for weight, before in zip(weights, start, strict=True)]

    for ours, theirs in zip(moved(Muon), moved(torch.optim.Muon), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_muon_takes_the_hidden_matrices_and_its_state_comes_back(tokenizer, tmp_path):
    tiny_llama(tokenizer, tmp_path / "model")

    def make() -> tuple[Any, MuonAdamW]:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        return model, MuonAdamW(model, muon_learning_rate=0.02, learning_rate=1e-2, weight_decay=0.0)

    def step(model: Any, optimizer: MuonAdamW, number: int) -> None:
        ids = (torch.arange(12)[None] * 7 + number) % 300
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make()
    names = {id(weight): name for name, weight in model.named_parameters()}
    matrices = [names[id(weight)] for weight in optimizer.param_groups[0]["params"]]
    assert len(matrices) == 2 * 7 and all(name.startswith("model.layers.") for name in matrices)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert optimizer.param_groups[1]["fused"]
    for number in range(3):
        step(model, optimizer, number)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")

    again, other = make()
    state = torch.load(tmp_path / "state.pt")
    again.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    for pair in ((model, optimizer), (again, other)):
        step(*pair, 3)
        step(*pair, 4)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


# -- where the numbers go ---------------------------------------------------------------------------------------------


def test_each_step_and_key_is_logged_once_also_after_a_resume(tmp_path):
    tracker = Tracker(tmp_path, active=True)
    tracker.log({"loss": 2.0, "note": "text", "flag": True}, step=1)
    tracker.log({"loss": 3.0, "grad_norm": 1.0}, step=1)
    tracker.log({"loss": 1.0}, step=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.')  # cut off by a crash
    resumed = Tracker(tmp_path, active=True)
    resumed.forget_after(1)
    resumed.log({"loss": 0.5}, step=2)
    assert metrics_of(tmp_path) == {(1, "loss"): 2.0, (1, "grad_norm"): 1.0, (2, "loss"): 0.5}
    assert resumed.history("loss") == {1: 2.0, 2: 0.5}
    Tracker(tmp_path, active=False).log({"loss": 9.0}, step=9)
    assert (9, "loss") not in metrics_of(tmp_path)


def test_a_failure_of_wandb_is_not_the_stages(tiny_model, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "neither online nor offline")
    run_here(
        "sft", tmp_path / "sft", model_name_or_path=tiny_model, report_to="wandb", max_steps=1, **data(rows, "sft")
    )
    assert "wandb failed and is left out of the rest of this step" in (tmp_path / "sft" / "log.txt").read_text()
    assert (1, "loss") in metrics_of(tmp_path / "sft")


def test_wandb_that_fails_on_the_way_is_left_out(tmp_path, caplog):
    class Broken:
        calls = 0

        def log(self, values: dict[str, Any]) -> None:
            self.calls += 1
            raise RuntimeError("no connection\nmore lines")

    tracker = Tracker(tmp_path, active=True)
    tracker._run = broken = Broken()
    with caplog.at_level(logging.WARNING):
        tracker.log({"loss": 1.0}, step=1)
        tracker.log({"loss": 0.5}, step=2)
    tracker.finish()
    assert broken.calls == 1 and "no connection" in caplog.text and "more lines" not in caplog.text
    assert metrics_of(tmp_path) == {(1, "loss"): 1.0, (2, "loss"): 0.5}


def test_wandb_is_one_run_a_step_with_a_stable_id_inside_the_folder(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    for _ in ("begun", "resumed"):
        tracker = Tracker(tmp_path / "first", active=True)
        tracker.start_wandb(tmp_path / "first", name="round-1.sft", group="run", config={"seed": 1})
        tracker.log({"loss": 1.0}, step=1)
        tracker.finish()
    id = (tmp_path / "first" / "wandb_id.txt").read_text()
    runs = [path.name.rpartition("-")[2] for path in (tmp_path / "first" / "wandb").glob("offline-run-*")]
    assert runs and set(runs) == {id}
    from engine.runtime.tracking import _run_id

    assert _run_id(tmp_path / "second") != id
    assert json.loads((tmp_path / "first" / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.0}
