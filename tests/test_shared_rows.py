"""Rows in which answers share their prompt say what rows of their own say: log-probs, rewards, losses, gradients."""

import itertools
from typing import Any

import pytest
import torch
from conftest import metrics_of, pair, run_here, weights_of, write_jsonl
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.trainer.utils import add_fused_lm_head

from engine.shared_rows import SharedRows, goes_with
from engine.template import IGNORED

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, "max_position_embeddings": 128,
         "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "initializer_range": 0.3}  # fmt: skip
KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "gpt2")
SEQUENCES = [  # three answers to one prompt, two to another, one that is alone
    [5, 6, 7, 8, 20, 21, 1],
    [5, 6, 7, 8, 22, 1],
    [5, 6, 7, 8, 20, 23, 24, 25, 1],
    [9, 10, 30, 1],
    [9, 11, 1],
    [12, 13, 14, 15, 16, 1],
]
GROUPS = [0, 0, 0, 1, 1, 2]


def make(kind: str, cls: Any = AutoModelForCausalLM, **keys: Any) -> Any:
    torch.manual_seed(0)
    sizes = dict(SIZES)
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": 64, "pad_token_id": 0,
                 "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3}  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes, **keys)
    options = {"num_labels": 1} if cls is AutoModelForSequenceClassification else {}
    for name, value in options.items():
        setattr(config, name, value)
    model = cls.from_config(config)
    if cls is AutoModelForCausalLM:
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model.eval()


def padded() -> dict[str, torch.Tensor]:
    ids_NT = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in SEQUENCES], batch_first=True)
    lengths_N = torch.tensor([len(ids) for ids in SEQUENCES])
    return {"input_ids": ids_NT, "attention_mask": (torch.arange(ids_NT.size(1)) < lengths_N[:, None]).long()}


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    assert largest > 1e-3
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, atol=1e-5 * largest, rtol=1e-5, msg=name)


def test_a_packed_row_holds_what_is_shared_once_and_a_copy_of_its_last_token_for_each_answer():
    rows = SharedRows.of(SEQUENCES, GROUPS)
    assert rows.ids_RL.tolist() == [
        [5, 6, 7, 8, 20, 21, 1, 8, 22, 1, 8, 20, 23, 24, 25, 1],
        [9, 10, 30, 1, 9, 11, 1, 12, 13, 14, 15, 16, 1, 0, 0, 0][: rows.ids_RL.size(1)],
    ]
    assert rows.positions_RL[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 3, 4, 5, 6, 7, 8]
    assert rows.branches_RL[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    flat = rows.ids_RL.flatten()
    for ids, source in zip(SEQUENCES, rows.source_NT, strict=True):
        assert flat[source[: len(ids)]].tolist() == ids


def test_branches_see_what_they_share_and_themselves_alone():
    rows = SharedRows.of(SEQUENCES, GROUPS)
    visible = rows.visible()[:, 0]
    for row, (q, k) in itertools.product(range(len(visible)), itertools.product(range(visible.size(1)), repeat=2)):
        group, branch = rows.groups_RL[row], rows.branches_RL[row]
        wanted = k <= q and group[q] == group[k] and branch[k] in (0, branch[q])
        assert bool(visible[row, q, k]) == bool(wanted)
    added = rows.visible(additive=torch.float32)[:, 0]
    assert ((added == 0) == visible).all() and (added[~visible] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_and_gradients_are_those_of_rows_of_their_own(kind, attention):
    if (kind, attention) == ("gemma2", "sdpa"):
        attention = "eager"  # it caps its scores, which SDPA does not
    model, batch = make(kind, attn_implementation=attention), padded()
    assert goes_with(model, torch.device("cpu"))
    labels_NT = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    labels_NT[:, 1] = IGNORED  # not seen by the loss, within what is shared
    seen_NT = labels_NT[:, 1:] != IGNORED
    wanted = model(**batch, labels=labels_NT, fused_lm_head=True, use_cache=False)
    found = SharedRows.of(SEQUENCES, GROUPS).log_probs(model, labels_NT, fused_lm_head=True, use_cache=False)
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-5, msg=name)
    assert (found.is_top1 == wanted.is_top1).all()
    assert not found.log_probs[~seen_NT].any() and found.log_probs[seen_NT].all()
    weights_NT = torch.rand(wanted.log_probs.shape, generator=torch.Generator().manual_seed(1))
    assert_same_gradients(
        gradients(model, (found.log_probs * weights_NT).sum()), gradients(model, (wanted.log_probs * weights_NT).sum())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_and_gradients_are_those_of_rows_of_their_own(kind):
    model, batch = make(kind, AutoModelForSequenceClassification), padded()
    assert goes_with(model, torch.device("cpu"), is_reward_model=True)
    weights_N = torch.arange(1.0, 1 + len(SEQUENCES))
    wanted_N = model(**batch, use_cache=False).logits[:, 0]
    wanted = gradients(model, (wanted_N * weights_N).sum())
    found_N = SharedRows.of(SEQUENCES, GROUPS).last_scores(model, batch["attention_mask"].sum(1), use_cache=False)
    torch.testing.assert_close(found_N, wanted_N, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients(model, (found_N * weights_N).sum()), wanted)


def test_a_model_that_does_not_take_the_mask_is_found_out():
    model = make("llama")
    own = model.model.forward

    def forward(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return own(*args, attention_mask=None if attention_mask.dim() == 4 else attention_mask, **kwargs)

    model.model.forward = forward
    assert not goes_with(model, torch.device("cpu"))
    model.model.forward = own
    assert goes_with(model, torch.device("cpu"))
    assert not goes_with(make("mamba", state_size=4, expand=2, conv_kernel=4), torch.device("cpu"))


@pytest.mark.parametrize("use_peft", [False, True])
@pytest.mark.parametrize("stage", ["dpo", "reward_model"])
def test_a_stage_trains_to_the_same_weights_and_numbers(stage, use_peft, tiny_model, tmp_path):
    middle = [{"role": "assistant", "content": "In the middle."}]
    rows = [pair(n) | ({"between": [middle]} if n % 3 == 0 else {}) for n in range(16)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", [pair(n) for n in range(100, 107)])
    made = {}
    for share in (True, False):
        folder = tmp_path / str(share)
        run_here(
            stage, folder, model_name_or_path=tiny_model, train_data=[tmp_path / "rows.jsonl"], share_prompts=share,
            eval_data=[tmp_path / "eval.jsonl"], optim="sgd", learning_rate=0.05, use_peft=use_peft, lora_dropout=0.0,
        )  # fmt: skip
        made[share] = (weights_of(folder / "model"), metrics_of(folder))
    (weights, numbers), (wanted, wanted_numbers) = made[True], made[False]
    assert numbers.keys() == wanted_numbers.keys()
    for key, value in wanted_numbers.items():
        assert numbers[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    assert "does not go with" not in (tmp_path / "True" / "log.txt").read_text()


@pytest.mark.parametrize("stage", ["dpo", "reward_model"])
def test_bf16_shares_rows_too(stage, tiny_model, rows, tmp_path):
    data = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"]}
    losses = []
    for share in (True, False):
        record = run_here(stage, tmp_path / str(share), model_name_or_path=tiny_model, bf16=True, share_prompts=share,
                          **data)  # fmt: skip
        losses.append(record.metrics["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert "does not go with" not in (tmp_path / "True" / "log.txt").read_text()


def test_a_mixture_of_experts_is_left_on_rows_of_its_own():
    model = make("llama")
    model.config.output_router_logits = False
    assert not goes_with(model, torch.device("cpu"))
