"""The reference's log-probs: equal to those of a live reference, computed once, and computed again when needed."""

import copy
import hashlib
import json
import logging
import random
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, ModelConfig

from data_schemas.artifact import Artifact
from data_schemas.files import read_json
from data_schemas.reference_log_probs import FOLDER, Passes
from data_schemas.rows import PreferencePair
from engine.models import lora
from engine.models.loading import load_causal
from engine.runtime import preemption
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.training import reference
from engine.training.dpo import DPOLoopTrainer
from engine.training.reference import COLUMNS
from engine.training.reference_cache import cut_into_batches, read_cache, weights_of
from stages import dpo
from tests.stage_runs import call_stage, metrics_of, run_here
from tests.stage_runs import weights_of as tensors_of
from tests.toy_models import tiny_llama
from tests.toy_rows import pair

NUM_PAIRS = 24 + 9  # training, held-out


@pytest.fixture
def counts(monkeypatch) -> list[int]:
    """The number of pairs of each forward pass of a reference."""
    found: list[int] = []
    own = DPOLoopTrainer.compute_ref_log_probs

    def counted(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        found.append(len(inputs["input_ids"]) // 2)
        return own(self, model, inputs)

    monkeypatch.setattr(DPOLoopTrainer, "compute_ref_log_probs", counted)
    return found


@pytest.fixture
def train(tiny_model, rows, tmp_path, counts) -> Any:
    """`train("a", beta=0.2)`: how many pairs the reference computed for a DPO run into the folder `a`."""

    def run(name: str, **keys: Any) -> int:
        counts.clear()
        data = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"]}
        run_here("dpo", tmp_path / name, **{"model_name_or_path": tiny_model, **data, **keys})
        return sum(counts)

    return run


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{FOLDER}/*/*.jsonl"))


def assert_same_run(one: Path, other: Path) -> None:
    first, second = tensors_of(one / "model"), tensors_of(other / "model")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert metrics_of(one) == metrics_of(other)


# -- the numbers ------------------------------------------------------------------------------------------------------


def table_of(tokenizer: Any, **keys: Any) -> Dataset:
    encode, _ = dpo.encoder(tokenizer, dpo.DPOArguments(train_data=[], **keys))
    return Dataset.from_list([encode(PreferencePair.model_validate(pair(number)))[0].columns() for number in range(12)])


@pytest.fixture(scope="module")
def table(tokenizer) -> Dataset:
    return table_of(tokenizer)


@pytest.fixture(scope="module")
def other_model(tokenizer, tmp_path_factory) -> Path:
    return tiny_llama(tokenizer, tmp_path_factory.mktemp("models") / "other", seed=1)


def trainer_of(
    model: Path,
    other: Path | None,
    table: Any,
    tokenizer: Any,
    folder: Path,
    *,
    share_prompts: bool = True,
    use_peft: bool = False,
    **keys: Any,
) -> Any:
    keys = {"use_cpu": True, "bf16": False, "report_to": []} | keys
    training = DPOConfig(output_dir=str(folder / "checkpoints"), **keys)
    arguments = dpo.DPOArguments(
        train_data=[], reference_model=str(other) if other else None, share_prompts=share_prompts
    )
    config = ModelConfig(model_name_or_path=str(model), use_peft=use_peft)
    stage = Stage("dpo", folder, {}, Tracker(folder, active=False), is_main=True)
    return dpo.make_trainer(stage, arguments, training, config, tokenizer, table, table)


def by_hand(model: Any, row: dict[str, Any], side: str) -> float:
    """The sum of log p over an answer's content, from a single row."""
    ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
    token = log_probs.gather(1, ids[0, 1:, None])[:, 0][-len(row[f"{side}_ids"]) :]
    return float(token[torch.tensor(row[f"{side}_content"])].sum())


@pytest.mark.parametrize("own", [True, False], ids=["the start", "another model"])
def test_every_pair_has_the_sums_of_its_reference(own, tiny_model, other_model, table, tokenizer, tmp_path):
    trainer = trainer_of(tiny_model, None if own else other_model, table, tokenizer, tmp_path / "a")
    trainer.attach_reference_log_probs("train", "eval")
    model = load_causal(str(tiny_model if own else other_model)).eval()
    for found in (trainer.train_dataset, trainer.eval_dataset):
        assert found["chosen_ids"] == table["chosen_ids"]
        for row in found:
            for side in ("chosen", "rejected"):
                assert row[f"ref_{side}_logps"] == pytest.approx(by_hand(model, row, side), rel=1e-6)


OPTIONS = [
    {},
    {"ld_alpha": 0.5},
    {"use_weighting": True},
    {"f_divergence_type": "js_divergence"},
    {"loss_type": ["aot", "sft"], "loss_weights": [1.0, 0.2]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradients_are_those_with_a_live_reference(
    options, tiny_model, other_model, table, tokenizer, tmp_path
):
    trainer = trainer_of(
        tiny_model, other_model, table, tokenizer, tmp_path / "a", precompute_ref_batch_size=3, **options
    )
    trainer.attach_reference_log_probs("train", "eval")
    with reference.PrecomputedReference._reference_model(trainer) as live:
        batch = trainer.data_collator(list(table))
        sums = trainer.compute_ref_log_probs(live, dict(batch))
    made = []
    for inputs in (trainer.data_collator(list(trainer.train_dataset)), batch | dict(zip(COLUMNS, sums, strict=True))):
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        made.append(
            (float(loss.detach()), {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()})
        )
    assert made[0][0] == pytest.approx(made[1][0], rel=1e-6)
    for name, grad in made[1][1].items():
        torch.testing.assert_close(made[0][1][name], grad, atol=1e-6, rtol=1e-6, msg=name)


def test_under_zero_in_bf16_the_sums_are_not_cast(tiny_model, table, tokenizer, tmp_path, monkeypatch):
    trainer = trainer_of(tiny_model, None, table, tokenizer, tmp_path / "a")
    config = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", config, raising=False)
    prepared = trainer._prepare_inputs({name: torch.tensor([-300.3]) for name in (*COLUMNS, "another")})
    assert prepared["another"].dtype == torch.bfloat16 and float(prepared["another"]) == -300.0
    assert [float(prepared[name]) for name in COLUMNS] == pytest.approx([-300.3] * 2, rel=1e-6)


# -- found again ------------------------------------------------------------------------------------------------------


def test_a_second_run_with_another_beta_and_seed_does_not_run_the_reference(train, counts, tmp_path):
    assert train("a") == NUM_PAIRS
    assert f"reference log-probs: {NUM_PAIRS} pairs computed, 0 read from the cache" in log_of(tmp_path / "a")
    assert train("b", beta=0.5, seed=8, learning_rate=1e-2, loss_type=["hinge"], loss_weights=[1.0]) == 0
    assert f"reference log-probs: 0 pairs computed, {NUM_PAIRS} read from the cache" in log_of(tmp_path / "b")
    assert not counts
    assert metrics_of(tmp_path / "a")[0, "eval_rewards/ties"] == 1


@pytest.fixture
def attach(tiny_model, table, tokenizer, tmp_path, counts) -> Any:
    """`attach("a", ld_alpha=0.5)`: how many pairs the reference computes for a step in folder `a`, and its trainer."""

    def attached(
        name: str, model: Path = tiny_model, other: Path | None = None, table: Any = table, **keys: Any
    ) -> Any:
        counts.clear()
        trainer = trainer_of(model, other, table, tokenizer, tmp_path / name, **keys)
        trainer.attach_reference_log_probs("train", "eval")
        return sum(counts), trainer

    return attached


def test_log_probs_that_depend_on_something_else_are_computed_again(attach, other_model, table, tokenizer, tmp_path):
    every = 2 * len(table)
    assert attach("a")[0] == every
    assert attach("b", ld_alpha=0.5)[0] == attach("c", bf16=True)[0] == attach("d", share_prompts=False)[0] == every
    assert attach("e", model=other_model)[0] == every
    assert attach("f", other=other_model)[0] == 0  # another policy, the same reference
    copied = shutil.copytree(other_model, tmp_path / "copy")
    assert attach("g", other=copied)[0] == 0  # by content
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert attach("h", other=copied)[0] == every
    rendered = copy.deepcopy(tokenizer)
    rendered.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|>:")
    assert rendered.chat_template != tokenizer.chat_template
    assert attach("i", table=table_of(rendered))[0] == every
    assert attach("j", table=table_of(tokenizer, mask_formatting=False))[0] == every
    assert attach("k", per_device_eval_batch_size=5)[0] == every  # other batches
    assert attach("l", per_device_eval_batch_size=5, precompute_ref_batch_size=8)[0] == 0
    assert attach("m", beta=0.7, learning_rate=1.0)[0] == 0


def test_a_models_content_is_its_records_where_it_has_one(tmp_path):
    (tmp_path / "step" / "model").mkdir(parents=True)
    (tmp_path / "step" / "model" / "w.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    raw = weights_of(str(tmp_path / "step" / "model"))
    record = Artifact(
        stage="sft",
        step="sft",
        recipe_version=1,
        fingerprint="same",
        keys={},
        inputs={},
        metrics={},
        outputs={"model": "model"},
        files={"model/w.safetensors": 7},
    )
    record.write(tmp_path / "step")
    assert record.sha256 == {"model/w.safetensors": digest}
    assert weights_of(str(tmp_path / "step" / "model")) == raw
    (tmp_path / "step" / "model" / "w.safetensors").write_bytes(b"others!")
    record.write(tmp_path / "step")  # computed again, under the same fingerprint
    assert weights_of(str(tmp_path / "step" / "model")) != raw


def test_the_order_of_pairs_does_not_matter_and_one_more_pair_costs_little(attach, table):
    assert attach("a")[0] == 24
    # The batches of training pairs are the same; those of the evaluation are not.
    assert attach("b", table=table.select(range(11, -1, -1)))[0] == 12

    generator = random.Random(0)
    keys = [f"{generator.getrandbits(256):064x}" for _ in range(501)]
    lengths = [generator.randint(10, 500) for _ in keys]
    whole = {tuple(keys[at] for at in places) for places in cut_into_batches(keys, lengths, size=8)}
    for left_out in (3, 100, 499):
        fewer = [place for place in range(len(keys)) if place != left_out]
        again = cut_into_batches([keys[at] for at in fewer], [lengths[at] for at in fewer], size=8)
        other = {tuple(keys[fewer[at]] for at in places) for places in again}
        assert len(whole - other) <= 6 < 60 < len(whole)


def test_batches_are_small_enough_by_falling_length_and_hold_each_pair_once():
    keys = [f"{number:08x}" for number in (5, 6, 7, 5, 9, 16)]
    # size 2: a batch ends after two pairs, or after a pair whose number is a multiple of 4 (16).
    assert cut_into_batches(keys, [10, 30, 20, 10, 40, 35], size=2) == [[4, 5], [1, 2], [0]]
    assert cut_into_batches(keys, [10, 30, 20, 10, 35, 40], size=2) == [[5], [4, 1], [2, 0]]
    assert cut_into_batches(keys, [1] * 6, size=1) == [[0], [1], [2], [4], [5]]


# -- lost, damaged, cut off -------------------------------------------------------------------------------------------


def columns(trainer: Any) -> list[list[float]]:
    return [dataset[name] for dataset in (trainer.train_dataset, trainer.eval_dataset) for name in COLUMNS]


def test_a_damaged_batch_is_computed_again(attach, tmp_path, caplog):
    num_computed, trainer = attach("a")
    (file,) = files_of(tmp_path)
    lines = file.read_text().splitlines(keepends=True)
    first, last = (len(json.loads(line.partition(" ")[2])["sums"]) for line in (lines[0], lines[-1]))
    assert num_computed == 24 and len(lines) > 3
    lines[0] = lines[0].replace("-", "-1", 1)
    file.write_text("".join(lines)[:-5])  # and the last one is truncated
    with caplog.at_level(logging.WARNING):
        num_computed, again = attach("b")
    assert f"{file.name}: 2 batches are damaged and are computed again" in caplog.messages
    assert num_computed == first + last and columns(again) == columns(trainer)
    file.write_bytes(b"\xff\xfe" * 100)
    num_computed, again = attach("c")
    assert num_computed == 24 - first - last and columns(again) == columns(trainer)


def test_a_killed_run_continues_with_the_next_batch(train, counts, tiny_model, rows, tmp_path, monkeypatch):
    train("whole/dpo")
    folder, number = tmp_path / "cut" / "dpo", 3

    def due(*args: Any) -> bool:
        return len(counts) == number

    counts.clear()
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "is_requested", due)
        data = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"]}
        assert call_stage("dpo", folder, model_name_or_path=tiny_model, **data) == 143
    done = sum(counts)
    assert len(counts) == number and 0 < done < NUM_PAIRS
    outcome = read_json(folder / "outcome.json")
    assert outcome is not None
    assert outcome["hint"] == "run the same command again: the reference log-probs computed so far are kept"
    assert train("cut/dpo") == NUM_PAIRS - done
    assert_same_run(folder, tmp_path / "whole" / "dpo")


def test_a_resumed_run_has_the_same_reference_whose_files_may_be_lost(train, tiny_model, rows, tmp_path, monkeypatch):
    keys = {"max_steps": 3, "eval_steps": 3, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    train("whole/dpo", **keys)
    folder, step = tmp_path / "kept" / "dpo", DPOLoopTrainer.training_step
    data = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"]}

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DPOLoopTrainer, "training_step", stop)
        assert call_stage("dpo", folder, model_name_or_path=tiny_model, **data, **keys) == 130
    shutil.copytree(folder, tmp_path / "lost" / "dpo")  # without the files beside it
    for name, wanted in (("kept", 0), ("lost", NUM_PAIRS)):
        assert train(f"{name}/dpo", **keys) == wanted
        assert "resuming from step 2\n" in log_of(tmp_path / name / "dpo")
        assert_same_run(tmp_path / name / "dpo", tmp_path / "whole" / "dpo")


def test_if_the_shared_folder_is_not_writable_the_steps_own_is_used(attach, tmp_path, monkeypatch):
    monkeypatch.setattr(reference.os, "access", lambda *_: False)
    assert [attach("a")[0], attach("a")[0]] == [24, 0]
    assert not files_of(tmp_path) and len(list((tmp_path / "a" / "checkpoints").glob("*/*.jsonl"))) == 1


# -- one model in memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["start", "other", "lora", "lora and other"])
def test_no_second_model_is_alive_when_training_begins(kind, train, other_model, monkeypatch):
    loaded: list[Any] = []
    alive: list[int] = []
    step = DPOLoopTrainer.training_step

    def load(*args: Any, **kwargs: Any) -> Any:
        model = load_causal(*args, **kwargs)
        loaded.append(weakref.ref(model))
        return model

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        alive.append(sum(found() is not None for found in loaded))
        assert self.ref_model is None
        return step(self, *args, **kwargs)

    for module in (lora, reference):
        monkeypatch.setattr(module, "load_causal", load)
    monkeypatch.setattr(DPOLoopTrainer, "training_step", count)
    keys = {"use_peft": True} if "lora" in kind else {}
    assert train("a", **keys, **({"reference_model": other_model} if "other" in kind else {})) == NUM_PAIRS
    assert len(loaded) == (2 if "other" in kind else 1)
    assert alive and set(alive) == {1}


def test_with_adapters_the_reference_is_the_model_without_them(attach, tiny_model, table, tokenizer, tmp_path):
    plain = attach("plain/a")[1]
    adapted = trainer_of(tiny_model, None, table, tokenizer, tmp_path / "lora" / "a", use_peft=True)
    added = [weight for name, weight in adapted.model.named_parameters() if "lora_B" in name]
    assert len(added) == 4
    with torch.no_grad():
        for weight in added:
            weight.fill_(1.0)
    adapted.attach_reference_log_probs("train", "eval")
    for one, other in zip(columns(adapted), columns(plain), strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    assert attach("lora/b", use_peft=True, beta=0.3)[0] == 0


def test_a_loss_without_a_reference_runs_none(train, tmp_path):
    assert train("a", loss_type=["sft"], loss_weights=[1.0]) == 0
    numbers = metrics_of(tmp_path / "a")
    assert numbers[0, "eval_loss"] == pytest.approx(numbers[0, "eval_nll"], rel=1e-6)
    assert not [name for _, name in numbers if "rewards" in name] and not (tmp_path / FOLDER).exists()


def test_a_reference_that_changes_stays_in_memory(train, counts, tmp_path):
    train("a", sync_ref_model=True, ref_model_sync_steps=1)
    assert len(counts) > 3 and not (tmp_path / FOLDER).exists()
    assert "the reference changes, so it stays in memory" in log_of(tmp_path / "a")
    assert metrics_of(tmp_path / "a")[0, "eval_rewards/ties"] == 1


# -- two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_share_the_work_and_both_get_all_results(train, run_stage, tiny_model, rows, tmp_path):
    """A part is there: what is missing is an odd number of batches, and the held-out pairs are in other batches."""
    keys = {"max_steps": 2, "eval_steps": 1, "per_device_eval_batch_size": 4}
    train("one", **keys)
    (file,) = files_of(tmp_path)
    lines = file.read_text().splitlines(keepends=True)
    missing = lines[-2:]
    file.write_text("".join(lines[:-2]))
    data = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"]}
    run_stage("dpo", tmp_path / "two", profile="ddp", processes=2, model_name_or_path=tiny_model, **data, **keys)
    # Of the nine held-out pairs the last is alone in its batch, for two processes as for one.
    made = sum(len(json.loads(line.partition(" ")[2])["sums"]) for line in missing) + 8
    said = f"reference log-probs: {made} pairs computed, {NUM_PAIRS - made} read from the cache"
    assert said in log_of(tmp_path / "two")
    # The batches computed again have the sums that one process gave them.
    wanted, (folder,) = read_sums_of(missing), {path.parent for path in files_of(tmp_path)}
    found = read_cache([folder])
    for key, sums in wanted.items():
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(sums), rtol=1e-6, atol=1e-6)
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    for key in [(0, "eval_loss"), (1, "loss"), (1, "eval_loss"), (2, "loss"), (2, "eval_loss")]:
        assert two[key] == pytest.approx(one[key], abs=1e-5), key
    assert two[0, "eval_rewards/ties"] == 1


def read_sums_of(lines: list[str]) -> dict[str, Any]:
    contents = [json.loads(line.partition(" ")[2]) for line in lines]
    return {content["pass"]: content["sums"] for content in contents}


def test_a_stage_leaves_the_note_of_its_folder(train, tmp_path):
    train("a", per_device_eval_batch_size=4)
    (note,) = tmp_path.glob(f"{FOLDER}/*/*.json")
    assert note.name == "a.json" and read_json(note) == Passes(4, 4, 1).as_note()
