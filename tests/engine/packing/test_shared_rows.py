"""Rows in which answers share their prompt give the log-probs, rewards, losses and gradients of separate rows."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.integrations import flex_attention as transformers_flex
from trl.trainer.utils import add_fused_lm_head

from engine.packing import attention_calls, row_attention
from engine.packing.attention_calls import RowSegments, group_segments
from engine.packing.shared_rows import SharedRows
from engine.packing.support import supports_shared_rows
from engine.tokens.template import IGNORED
from engine.training.next_token import cut_at_ends
from tests.stage_runs import metrics_of, run_here, weights_of
from tests.toy_rows import conversation, pair, write_jsonl

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "gpt2")
SEQUENCES = [  # three answers to one prompt, two to another, one by itself
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
        sizes = {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 128,
            "vocab_size": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "initializer_range": 0.3,
        }
    config = AutoConfig.for_model(kind, **sizes | keys)
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


def test_the_long_row_holds_what_is_shared_once_and_a_copy_of_its_last_token_for_each_answer():
    rows = SharedRows.of(SEQUENCES, GROUPS)
    assert rows.ids_1S.tolist() == [
        [5, 6, 7, 8, 20, 21, 1, 8, 22, 1, 8, 20, 23, 24, 25, 1, 9, 10, 30, 1, 9, 11, 1, 12, 13, 14, 15, 16, 1]
    ]
    assert rows.lengths_P.tolist() == [16, 7, 6]
    assert rows.positions_1S[0].tolist() == [
        *[0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 3, 4, 5, 6, 7, 8],
        *[0, 1, 2, 3, 0, 1, 2],
        *range(6),
    ]
    assert rows.branches_1S[0, :16].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    row = rows.ids_1S[0]
    for ids, before, last in zip(SEQUENCES, rows.predictors_NT, rows.last_N, strict=True):
        assert row[before[: len(ids) - 1]].tolist() == ids[:-1]
        assert row[before[: len(ids) - 1] + 1].tolist() == ids[1:]
        assert int(last) == int(before[len(ids) - 2]) + 1


@pytest.mark.parametrize("window", [None, 3])
def test_branches_see_only_what_they_share_and_themselves(window):
    rows = SharedRows.of(SEQUENCES, GROUPS)
    segments = RowSegments(rows.lengths_P.tolist(), rows.branches_1S, rows.positions_1S)
    assert [call.lengths for call in segments.calls] == [[16, 7, 6]]  # short segments share a call
    visible = segments.calls[0].visible(window)
    starts = [0, 16, 23]
    for segment, (start, length) in enumerate(zip(starts, rows.lengths_P.tolist(), strict=True)):
        for q, k in itertools.product(range(length), repeat=2):
            branch, position = rows.branches_1S[0, start:], rows.positions_1S[0, start:]
            wanted = k <= q and branch[k] in (0, branch[q]) and (window is None or position[q] - position[k] < window)
            assert bool(visible[segment, 0, q, k]) == bool(wanted)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([], []),
        ([500], [(0, 1)]),
        ([500, 499, 400, 390], [(0, 2), (2, 4)]),  # 2 x 500^2 + 2 x 400^2 + 2 calls < 4 x 500^2 + 1 call
        ([60, 50, 40, 30, 20], [(0, 5)]),  # 5 x 60^2 is less than two more calls
    ],
)
def test_segments_of_similar_length_share_a_call(lengths, groups):
    assert group_segments(lengths) == groups


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_and_gradients_are_those_of_separate_rows(kind, attention):
    if (kind, attention) == ("gemma2", "sdpa"):
        attention = "eager"  # it caps its scores, which SDPA does not
    model, batch = make(kind, attn_implementation=attention), padded()
    assert supports_shared_rows(model, torch.device("cpu"))
    labels_NT = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    labels_NT[:, 1] = IGNORED  # not part of the loss, inside the shared part
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
def test_rewards_and_gradients_are_those_of_separate_rows(kind):
    model, batch = make(kind, AutoModelForSequenceClassification), padded()
    assert supports_shared_rows(model, torch.device("cpu"), is_reward_model=True)
    weights_N = torch.arange(1.0, 1 + len(SEQUENCES))
    wanted_N = model(**batch, use_cache=False).logits[:, 0]
    wanted = gradients(model, (wanted_N * weights_N).sum())
    found_N = SharedRows.of(SEQUENCES, GROUPS).last_scores(model, use_cache=False)
    torch.testing.assert_close(found_N, wanted_N, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients(model, (found_N * weights_N).sum()), wanted)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gemma2"])  # which caps its scores
def test_a_long_segment_is_computed_in_parts(kind, monkeypatch):
    """With calls that cost nothing a short segment is computed in parts too. One of them has no prefix."""
    monkeypatch.setattr(attention_calls, "CALL_COST", 0)
    rows = SharedRows.of(SEQUENCES, GROUPS)
    segments = RowSegments(rows.lengths_P.tolist(), rows.branches_1S, rows.positions_1S)
    assert [list(call.part_lengths) for call in segments.calls] == [[3, 4, 3, 6], [0, 4, 3], []]
    test_log_probs_and_gradients_are_those_of_separate_rows(kind, "sdpa")


@pytest.mark.parametrize("kind", ["llama", "qwen3"])  # whose normalised queries are float32 under autocast
def test_by_parts_supports_autocast(kind, monkeypatch):
    monkeypatch.setattr(attention_calls, "CALL_COST", 0)
    model, batch = make(kind), padded()
    assert supports_shared_rows(model, torch.device("cpu"))
    labels_NT = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(**batch, labels=labels_NT, fused_lm_head=True, use_cache=False).log_probs
        found = SharedRows.of(SEQUENCES, GROUPS).log_probs(model, labels_NT, fused_lm_head=True, use_cache=False)
        found.log_probs.sum().backward()
    torch.testing.assert_close(found.log_probs, wanted, atol=0.1, rtol=0.05)


def test_by_parts_is_exact():
    """Against the plain formula in float64, with gradients, heads that share keys, and longer parts than a block."""
    lengths, parts, scale = [700], [300, 150, 250], 0.3
    branches = torch.tensor([[0] * 300 + [1] * 150 + [2] * 250])
    segments = RowSegments(lengths, branches, torch.arange(700)[None])
    assert list(segments.calls[0].part_lengths) == parts
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, 700, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    weights = torch.randn(1, 700, 4, 8, generator=generator, dtype=torch.float64)
    by_parts, _ = row_attention.attend(q, k, v, segments, scaling=scale, by_matmul=False)
    plain, _ = row_attention.attend(q, k, v, segments, scaling=scale, by_matmul=True)
    torch.testing.assert_close(by_parts, plain, atol=1e-6, rtol=1e-6)  # a softmax in float32
    found, wanted = (torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (by_parts, plain))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
def test_a_sliding_window_is_kept(kind):
    """With windows shorter than the rows, across the shared part and a branch."""
    model, batch = make(kind, sliding_window=3), padded()
    labels_NT = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    wanted = model(**batch, labels=labels_NT, fused_lm_head=True, use_cache=False).log_probs
    found = SharedRows.of(SEQUENCES, GROUPS).log_probs(model, labels_NT, fused_lm_head=True, use_cache=False).log_probs
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "window"), [("llama", None), ("gemma2", 3), ("mistral", 3)])
def test_flex_attention_gives_the_same_outputs_as_the_others(kind, window, monkeypatch):
    """Not compiled, since the compiler has no gradients on a CPU. FlexAttention's refusal of them is patched out."""
    own = flex_attention.flex_attention
    monkeypatch.setattr(transformers_flex, "WrappedFlexAttention", lambda training: lambda: own)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    keys = {"sliding_window": window} if window else {}
    labels_NT = padded()["input_ids"].masked_fill(padded()["attention_mask"] == 0, IGNORED)
    found, grads = {}, {}
    for attention in ("eager", "flex_attention"):
        model = make(kind, attn_implementation=attention, **keys)
        assert supports_shared_rows(model, torch.device("cpu"))
        assert model.config._attn_implementation == row_attention.NAMES[attention]
        rows = SharedRows.of(SEQUENCES, GROUPS)
        found[attention] = rows.log_probs(model, labels_NT, fused_lm_head=True, use_cache=False).log_probs
        weights = torch.arange(found[attention].numel()).reshape_as(found[attention]) / 10
        grads[attention] = gradients(model, (found[attention] * weights).sum())
    torch.testing.assert_close(found["flex_attention"], found["eager"], atol=1e-5, rtol=1e-5)
    assert_same_gradients(grads["flex_attention"], grads["eager"])


@pytest.mark.long
def test_compiled_flex_attention_follows_the_mask_and_rows_of_any_length_share_a_kernel():
    """Only the forward pass, and rows of at least 128 tokens, which the compiler supports on a CPU."""
    torch.manual_seed(0)
    compiled, numbers = torch.compile(flex_attention.flex_attention), []
    for length in range(200, 500, 37):
        branches_S = torch.tensor([0] * 100 + [1] * 60 + [2] * (length - 160) + [0] * 100)
        positions_S = torch.cat([torch.arange(length), torch.arange(100)])
        mask = RowSegments([length, 100], branches_S[None], positions_S[None]).block_mask(None)
        query, key, value = (torch.randn(1, 4, length + 100, 32) for _ in range(3))
        order, piece = torch.arange(length + 100), torch.tensor([0] * length + [1] * 100)
        visible = (order[:, None] >= order) & (piece[:, None] == piece)
        visible &= (branches_S == 0) | (branches_S == branches_S[:, None])
        wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        torch.testing.assert_close(compiled(query, key, value, block_mask=mask), wanted, atol=1e-5, rtol=1e-5)
        numbers.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert numbers[-1] == numbers[3], "else each batch of a training would be compiled again"


@contextlib.contextmanager
def patched_head(met: list[int]) -> Iterator[None]:
    """Inside it, `met` gets the number of tokens that TRL's head is applied to in each call."""
    from trl.trainer import utils

    own = utils._ChunkedLogProbFunction.apply

    def apply(hidden: torch.Tensor, *args: Any) -> Any:
        met.append(len(hidden))
        return own(hidden, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils._ChunkedLogProbFunction, "apply", apply)
        yield


def test_the_head_is_applied_only_where_there_is_a_label():
    model, batch = make("llama"), padded()
    labels_NT = torch.full_like(batch["input_ids"], IGNORED)
    labels_NT[0, 5:7] = batch["input_ids"][0, 5:7]
    rows, met = SharedRows.of(SEQUENCES, GROUPS), []
    with patched_head(met):
        found = rows.log_probs(model, labels_NT, fused_lm_head=True, use_cache=False)
        nothing = rows.log_probs(model, torch.full_like(labels_NT, IGNORED), fused_lm_head=True, use_cache=False)
    assert met == [2, 1] and not nothing.log_probs.any()  # one is ignored: the head takes no empty row
    assert found.label_mask.sum() == 2 and (found.log_probs != 0).sum() == 2


def test_documents_of_a_block_do_not_see_each_other_and_are_predicted_from_the_end_before():
    model = make("llama")
    blocks = [[5, 6, 1, 7, 8, 9, 10, 1, 11], [12, 13, 14, 15, 16, 17, 18, 19, 1]]
    assert cut_at_ends(blocks[0], 1) == [[5, 6, 1], [7, 8, 9, 10, 1], [11]] and cut_at_ends(blocks[1], 1) == [blocks[1]]
    rows = SharedRows.of_parts([cut_at_ends(block, 1) for block in blocks])
    found = rows.log_probs(model, torch.tensor(blocks), fused_lm_head=True, use_cache=False).log_probs
    for number, block in enumerate(blocks):
        logits = [model(input_ids=torch.tensor([part])).logits.log_softmax(-1)[0] for part in cut_at_ends(block, 1)]
        wanted = torch.cat(logits)[:-1].gather(1, torch.tensor(block[1:])[:, None])[:, 0]
        torch.testing.assert_close(found[number], wanted, atol=1e-5, rtol=1e-5)


def test_a_model_that_does_not_support_shared_rows_is_detected_and_left_unchanged():
    model = make("llama")
    own = model.model.forward
    model.model.forward = lambda *args, row_segments=None, **kwargs: own(*args, **kwargs)
    assert not supports_shared_rows(model, torch.device("cpu"))
    assert model.config._attn_implementation == "sdpa"
    model.model.forward = own
    assert supports_shared_rows(model, torch.device("cpu"))
    assert not supports_shared_rows(make("mamba", state_size=4, expand=2, conv_kernel=4), torch.device("cpu"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_calls_of_the_model_give_the_same_outputs_as_before(attention):
    model, batch = make("llama", attn_implementation=attention), padded()
    before = model(**batch).logits
    assert supports_shared_rows(model, torch.device("cpu"))
    assert torch.equal(model(**batch).logits, before)
    assert "row_segments" not in model.config.to_json_string()


@pytest.mark.parametrize("use_peft", [False, True])
@pytest.mark.parametrize("stage", ["dpo", "reward_model", "sft"])
def test_a_stage_trains_to_the_same_weights_and_numbers(stage, use_peft, tiny_model, tmp_path):
    middle = [{"role": "assistant", "content": "In the middle."}]
    rows = [pair(n) | ({"between": [middle]} if n % 3 == 0 else {}) for n in range(16)]
    held_out = [pair(n) for n in range(100, 107)]
    if stage == "sft":
        rows, held_out = ([conversation(n) for n in numbers] for numbers in (range(16), range(100, 107)))
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", held_out)
    made = {}
    for share in (True, False):
        folder = tmp_path / str(share)
        run_here(
            stage,
            folder,
            model_name_or_path=tiny_model,
            train_data=[tmp_path / "rows.jsonl"],
            eval_data=[tmp_path / "eval.jsonl"],
            optim="sgd",
            learning_rate=0.05,
            use_peft=use_peft,
            lora_dropout=0.0,
            **{"padding_free" if stage == "sft" else "share_prompts": share},
        )
        made[share] = (weights_of(folder / "model"), metrics_of(folder))
    (weights, numbers), (wanted, wanted_numbers) = made[True], made[False]
    assert numbers.keys() == wanted_numbers.keys()
    for key, value in wanted_numbers.items():
        assert numbers[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    assert numbers[0, "eval_loss"] == pytest.approx(wanted_numbers[0, "eval_loss"], rel=1e-6)  # of the same weights
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    assert "does not support packed rows" not in (tmp_path / "True" / "log.txt").read_text()


@pytest.mark.parametrize("stage", ["dpo", "reward_model"])
def test_bf16_shares_rows_too(stage, tiny_model, rows, tmp_path):
    data = {"train_data": [rows / "pairs.jsonl"], "eval_data": [rows / "pairs_eval.jsonl"]}
    losses = []
    for share in (True, False):
        record = run_here(
            stage, tmp_path / str(share), model_name_or_path=tiny_model, bf16=True, share_prompts=share, **data
        )
        losses.append([record.metrics[name] for name in ("eval_loss_at_step_0", "eval_loss")])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=5e-3)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=5e-2)  # after six steps with different rounding
    assert "does not support packed rows" not in (tmp_path / "True" / "log.txt").read_text()


def test_a_mixture_of_experts_keeps_separate_rows():
    model = make("llama")
    model.config.output_router_logits = False
    assert not supports_shared_rows(model, torch.device("cpu"))
