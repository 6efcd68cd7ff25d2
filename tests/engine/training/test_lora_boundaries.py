"""LoRA and QLoRA from one stage to the next: kept, merged and quantised adapters are the models that were trained."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.judging.scoring import ScoringSettings, load_scorer
from engine.models.adapters import CONFIG, AdapterBase, is_adapter
from engine.models.loading import load_causal, load_reward
from engine.training import method
from tests.engine.training.training_runs import data
from tests.stage_runs import call_stage, metrics_of, run_here, weights_of
from tests.toy_adapters import logits

LORA: dict[str, Any] = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj", "down_proj"], "lora_dropout": 0.0}
FORMS: dict[str, dict[str, Any]] = {
    "merged": LORA,
    "kept": LORA | {"at_end": "keep"},
    "quantised merged": LORA | {"load_in_4bit": True},
    "quantised kept": LORA | {"load_in_4bit": True, "at_end": "keep"},
}


def keys_of(form: str) -> dict[str, Any]:
    if "quantised" in form:
        pytest.importorskip("bitsandbytes")
    return FORMS[form]


@pytest.fixture(scope="module")
def trained(tiny_model, rows, tmp_path_factory) -> Callable[[str, str], tuple[Path, torch.Tensor]]:
    """A stage with adapters of a form: its folder, and the logits or scores of its model at the end of training."""
    done: dict[tuple[str, str], tuple[Path, torch.Tensor]] = {}

    def run(stage: str, form: str) -> tuple[Path, torch.Tensor]:
        if (stage, form) not in done:
            keys, folder = keys_of(form), tmp_path_factory.mktemp("lora") / stage
            seen: list[torch.Tensor] = []
            wrapped = method.train_and_save

            def keep(trainer: Any, *args: Any, **kwargs: Any) -> Any:
                publish = trainer.train

                def train(**options: Any) -> Any:
                    result = publish(**options)
                    seen.append(logits(trainer.model))
                    return result

                trainer.train = train
                return wrapped(trainer, *args, **kwargs)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(method, "train_and_save", keep)
                own = data(rows, stage) | {"learning_rate": 1e-2, "keep": "last"}
                run_here(stage, folder, model_name_or_path=tiny_model, **own, **keys)
            done[stage, form] = folder, seen[0]
        return done[stage, form]

    return run


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_the_saved_model_is_the_trained_one(stage, form, trained, tiny_model):
    folder, expected = trained(stage, form)
    model, load = folder / "model", load_reward if stage == "reward_model" else load_causal
    assert is_adapter(model) == ("kept" in form)
    found = logits(load(str(model)))
    print(f"parity: {stage} {form}: outputs of the saved model differ by {float((found - expected).abs().max()):.1e}")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert float((expected - logits(load(str(tiny_model)))).abs().max()) > 1e-2
    if stage == "reward_model":
        _, scorer = load_scorer(str(model), ScoringSettings(torch.device("cpu"), "auto", 8))
        torch.testing.assert_close(logits(scorer.model), expected, atol=1e-5, rtol=1e-4)
        assert any(name.endswith("score.weight") for name in weights_of(model))


@pytest.mark.parametrize("policy", ["merged", "kept"])
@pytest.mark.parametrize("start", FORMS)
def test_dpo_starts_at_ln_2_with_margins_of_0(start, policy, trained, rows, tmp_path):
    folder, _ = trained("sft", start)
    forms = [policy, f"quantised {policy}"] if "quantised" not in start else [f"quantised {policy}"]
    if start == "quantised merged":
        forms.append(policy)
    for form in forms:
        if start == "kept" and "quantised" in form:
            continue  # refused, see below
        keys = keys_of(form) | {"loss_type": ["sigmoid"], "loss_weights": [1.0], "max_steps": 1, "learning_rate": 1e-2}
        record = run_here("dpo", tmp_path / form, model_name_or_path=folder / "model", **keys, **data(rows, "dpo"))
        values = metrics_of(tmp_path / form)
        loss, margin = values[0, "eval_loss"] - math.log(2), values[0, "eval_rewards/margins"]
        print(f"parity: dpo {form} from sft {start}: loss - ln 2 = {loss:.1e}, margin {margin:.1e}")
        assert values[0, "eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert values[0, "eval_rewards/margins"] == pytest.approx(0, abs=1e-6)
        assert values[1, "loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert record.metrics["eval_loss"] != values[0, "eval_loss"] or record.metrics["best_step"] == 0
        if "kept" in form and "kept" in start:  # the adapter of the SFT stage goes on, on the same base
            one, other = (AdapterBase.read(path / "model") for path in (folder, tmp_path / form))
            assert one.identity == other.identity
            assert "is continued" in (tmp_path / form / "log.txt").read_text()


def test_a_kept_adapter_is_continued_from_its_weights_and_its_reference_is_not_its_base(trained, rows, tmp_path):
    folder, sft = trained("sft", "kept")
    keys = LORA | {"loss_type": ["sigmoid"], "loss_weights": [1.0], "max_steps": 1, "learning_rate": 1e-12}
    run_here("dpo", tmp_path / "dpo", model_name_or_path=folder / "model", **keys, **data(rows, "dpo"))
    torch.testing.assert_close(logits(load_causal(str(tmp_path / "dpo" / "model"))), sft, atol=1e-5, rtol=1e-4)
    base = AdapterBase.read(folder / "model").resolved(folder / "model")
    own = keys | {"reference_model": base}
    run_here("dpo", tmp_path / "other", model_name_or_path=folder / "model", **own, **data(rows, "dpo"))
    assert abs(metrics_of(tmp_path / "other")[0, "eval_loss"] - math.log(2)) > 1e-3


def test_an_adapter_of_another_form_is_merged_in_memory_and_a_new_one_is_kept_on_it(trained, rows, tmp_path):
    folder, _ = trained("sft", "kept")
    keys = LORA | {"lora_r": 4, "at_end": "keep", "loss_type": ["sigmoid"], "loss_weights": [1.0], "max_steps": 1}
    run_here("dpo", tmp_path / "dpo", model_name_or_path=folder / "model", **keys, **data(rows, "dpo"))
    assert metrics_of(tmp_path / "dpo")[0, "eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "merged in memory, and a new one is trained: lora_r 16 -> 4" in (tmp_path / "dpo" / "log.txt").read_text()
    base = AdapterBase.read(tmp_path / "dpo" / "model")
    assert base.resolved(tmp_path / "dpo" / "model") == str((folder / "model").resolve())


def test_a_quantised_base_refuses_an_adapter_that_it_cannot_continue(trained, rows, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder, _ = trained("sft", "kept")
    keys = FORMS["quantised merged"] | data(rows, "dpo")
    assert call_stage("dpo", tmp_path / "dpo", model_name_or_path=folder / "model", **keys) == 2
    log = (tmp_path / "dpo" / "log.txt").read_text()
    assert "can only be continued with the keys it was trained with (load_in_4bit False -> True)" in log


@pytest.mark.parametrize("form", ["kept", "quantised merged"])
def test_a_killed_stage_with_adapters_resumes_to_the_same_model(form, tiny_model, rows, tmp_path):
    from engine.training import run

    keys = keys_of(form) | data(rows, "sft") | {"model_name_or_path": tiny_model, "learning_rate": 1e-2}
    keys |= {"max_steps": 4, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    run_here("sft", tmp_path / "one", **keys)
    ends = run.TrackingCallback.on_log

    def stop_at_3(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ends(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.TrackingCallback, "on_log", stop_at_3)
        assert call_stage("sft", tmp_path / "two", **keys) == 130
    run_here("sft", tmp_path / "two", **keys)
    assert "resuming from step 2" in (tmp_path / "two" / "log.txt").read_text()
    one, two = (weights_of(tmp_path / name / "model") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_a_quantised_base_in_bfloat16_trains_its_head_and_new_rows_in_that_precision(stage, tiny_model, rows, tmp_path):
    keys = keys_of("quantised merged") | data(rows, stage) | {"dtype": "bfloat16", "max_steps": 1}
    record = run_here(stage, tmp_path / stage, model_name_or_path=tiny_model, **keys)
    assert math.isfinite(record.metrics["eval_loss"])


@pytest.mark.long
@pytest.mark.parametrize("stage", ["sft", "reward_model", "dpo"])
def test_two_processes_under_zero3_train_the_adapters_of_one(stage, run_stage, tiny_model, rows, tmp_path):
    keys = LORA | data(rows, stage) | {"max_steps": 2, "eval_steps": 1, "per_device_eval_batch_size": 4}
    run_here(stage, tmp_path / "one", model_name_or_path=tiny_model, **keys)
    for at_end in ("merge", "keep"):
        folder = tmp_path / at_end
        own = keys | {"at_end": at_end}
        run_stage(stage, folder, profile="zero3", processes=2, model_name_or_path=tiny_model, **own)
        assert "packed rows" not in (folder / "log.txt").read_text()  # they are packed, as in one process
        wanted, found = metrics_of(tmp_path / "one"), metrics_of(folder)
        assert found[0, "eval_loss"] == pytest.approx(wanted[0, "eval_loss"], abs=1e-5)
        assert found[2, "eval_loss"] == pytest.approx(wanted[2, "eval_loss"], abs=1e-5)
        assert (folder / "model" / CONFIG).exists() == (at_end == "keep")
        load = load_reward if stage == "reward_model" else load_causal
        expected = logits(load(str(tmp_path / "one" / "model")))
        torch.testing.assert_close(logits(load(str(folder / "model"))), expected, atol=1e-3, rtol=1e-3)
    assert os.environ.get("RANK") is None
