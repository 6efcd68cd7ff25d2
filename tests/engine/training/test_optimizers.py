"""Optimizers: fused by default, torch.compile, and Muon against torch's own."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.training import method, optimizers, run
from engine.training.optimizers import Muon, MuonAdamW
from tests.engine.training.training_runs import STAGES, data
from tests.stage_runs import run_here, weights_of
from tests.toy_models import tiny_llama


@pytest.mark.parametrize("stage", STAGES)
def test_optimizers_are_fused_by_default(stage, tiny_model, rows, tmp_path, monkeypatch):
    made: list[Any] = []
    whole = method.train_and_save

    def train_and_save(trainer: Any, *given: Any, **options: Any) -> Any:
        made.append(trainer)
        return whole(trainer, *given, **options)

    monkeypatch.setattr(method, "train_and_save", train_and_save)
    monkeypatch.setattr(run, "check_trained", lambda *_, **__: None)  # it gives the optimizer back
    run_here(stage, tmp_path / "stage", model_name_or_path=tiny_model, max_steps=1, **data(rows, stage))
    optimizer = made[0].optimizer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.long
def test_dpo_supports_torch_compile(tiny_model, rows, tmp_path, monkeypatch):
    """Without the compiler itself, which takes minutes: the traced code runs unchanged. The reference is wrapped too,
    and then has no truth value."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # set by the key, and restored by the test
    keys = {"model_name_or_path": tiny_model, "max_steps": 1, "optim": "sgd", **data(rows, "dpo")}
    run_here("dpo", tmp_path / "traced", torch_compile=True, torch_compile_backend="eager", **keys)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    run_here("dpo", tmp_path / "plain", **keys)
    traced, plain = (weights_of(tmp_path / name / "model") for name in ("traced", "plain"))
    for name, tensor in plain.items():
        torch.testing.assert_close(traced[name], tensor, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("together", [1, optimizers.STACK_ELEMENTS])
def test_muon_moves_weights_as_torchs_does(together, monkeypatch):
    """torch's computes in bfloat16, so it differs by a hundredth. Two matrices of one shape must not be mixed up."""
    monkeypatch.setattr(optimizers, "STACK_ELEMENTS", together)
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


def test_muon_optimizes_the_hidden_matrices_and_its_state_is_restored(tokenizer, tmp_path):
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
