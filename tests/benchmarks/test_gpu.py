"""The GPU benchmark on a CPU: its rows, counts and page, parts that fail, and all of its parts with tiny models."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.speed import gpu, gpu_attention, gpu_page, gpu_parts, gpu_rows, gpu_work
from benchmarks.speed.gpu_parts import GPU, TINY, Part, parts_of
from engine.packing.row_attention import attend
from engine.packing.shared_rows import SharedRows
from tests.patience import PATIENCE


def test_rows_have_exactly_the_lengths_that_were_drawn(tmp_path):
    from engine.models.loading import load_tokenizer

    gpu_rows.write_model(tmp_path / "model", "tiny")
    assert len(load_tokenizer(str(tmp_path / "model"))) == 512
    means = gpu_rows.write_training_rows(tmp_path, lengths="tiny", number=4, vocabulary=512)
    counts = gpu_rows.counts_of_rows(tmp_path, str(tmp_path / "model"))
    both = means["prompt"] + means["chosen"]
    assert counts["sft"]["tokens"] == 4 * both and counts["sft"]["logits"] == 4 * means["chosen"]
    # The generation prompt is shared too, and the first token of an answer differs.
    assert counts["dpo"]["tokens"] == counts["reward"]["tokens"] == 4 * (both + means["rejected"])
    assert counts["dpo"]["logits"] == 4 * (means["chosen"] + means["rejected"]) and counts["reward"]["logits"] == 0
    assert len((tmp_path / "held_out.jsonl").read_text().splitlines()) == 2


def test_lengths_are_quantiles_of_a_log_normal_distribution():
    lengths = gpu_rows.LENGTHS["capybara"]
    assert lengths.quantile(712, 0.5) == 712
    assert lengths.quantile(100, 0.8413447) == 182  # one standard deviation: e^0.6 = 1.822
    assert lengths.quantile(4000, 0.9) == lengths.longest


def kernels_on_a_cpu():
    """The kernels of torch's varlen_attn, by their definition."""

    def spans(bounds_q, bounds_k):
        return zip(bounds_q[:-1], bounds_q[1:], bounds_k[:-1], bounds_k[1:], strict=True)

    def scores_of(q, k, causal):
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.size(-1) ** -0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
        return scores

    def forward(q, k, v, bounds_q, bounds_k, longest_q, longest_k, causal):
        out, lse = torch.zeros_like(q), torch.zeros(q.size(1), len(q), dtype=q.dtype)
        for a, b, c, d in spans(bounds_q, bounds_k):
            assert b - a <= longest_q and d - c <= longest_k
            scores = scores_of(q[a:b], k[c:d], causal)
            lse[:, a:b] = scores.logsumexp(-1)
            values = v[c:d].repeat_interleave(q.size(1) // v.size(1), dim=1)
            out[a:b] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        return out, lse, torch.zeros(2)

    def backward(grad, q, k, v, out, lse, bounds_q, bounds_k, longest_q, longest_k, causal, state):
        dq, dk, dv = (torch.zeros_like(tensor) for tensor in (q, k, v))
        repeats = q.size(1) // k.size(1)
        for a, b, c, d in spans(bounds_q, bounds_k):
            shares = (scores_of(q[a:b], k[c:d], causal) - lse[:, a:b, None]).exp()
            keys, values = (tensor[c:d].repeat_interleave(repeats, dim=1) for tensor in (k, v))
            at_scores = torch.einsum("qhd,khd->hqk", grad[a:b], values) - (grad[a:b] * out[a:b]).sum(-1).T[..., None]
            of_scores = shares * at_scores * q.size(-1) ** -0.5
            dq[a:b] += torch.einsum("hqk,khd->qhd", of_scores, keys)
            of_keys = torch.einsum("hqk,qhd->khd", of_scores, q[a:b])
            of_values = torch.einsum("hqk,qhd->khd", shares, grad[a:b])
            dk[c:d] += of_keys.unflatten(1, (-1, repeats)).sum(2)
            dv[c:d] += of_values.unflatten(1, (-1, repeats)).sum(2)
        return dq, dk, dv

    return forward, backward


@pytest.mark.parametrize("groups", [[0, 0, 1, 1, 2], [0, 1, 2, 3, 4]])
def test_varlen_attention_in_parts_gives_the_numbers_of_sdpa(groups):
    """Two prompts with two answers each and a single sequence; or no shared prompts at all."""
    sequences = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [7, 8, 9], [7, 8, 1, 1, 1, 2], [4, 4, 4]]
    row = SharedRows.of(sequences, groups)
    segments = gpu_attention.RowSegments(row.lengths_P.tolist(), row.branches_1S, row.positions_1S)
    torch.manual_seed(0)
    given = [torch.randn(1, heads, row.ids_1S.size(1), 8, dtype=torch.float64) for heads in (4, 2, 2)]
    results = []
    for name in ("sdpa", "varlen"):
        q, k, v = (tensor.clone().requires_grad_() for tensor in given)
        if name == "sdpa":
            out = attend(q, k, v, segments, by_matmul=True)[0]
        else:
            parts = gpu_attention.Parts.of(segments.lengths, row.branches_1S)
            assert len(parts.branch_tokens) > 0 or len(set(groups)) == 5
            packed = [tensor[0].transpose(0, 1) for tensor in (q, k, v)]
            out = gpu_attention.VarlenAttention.apply(*packed, parts, kernels_on_a_cpu())[None]
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        results.append([out.detach(), q.grad, k.grad, v.grad])
    for got, expected in zip(results[1], results[0], strict=True):
        assert torch.allclose(got.double(), expected.double(), atol=1e-5), (got - expected).abs().max()


def test_executed_operations_are_counted_from_shapes():
    layer = torch.nn.Linear(4, 6)
    q = torch.randn(1, 2, 5, 8)
    with gpu_work.counting() as work:
        layer(torch.randn(3, 4))
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        with torch.no_grad():
            layer(torch.randn(100, 4))
    layers, attention = 2 * 3 * 4 * 6, 4 * 8 * 2 * (15 + 25)
    assert (work.layers, work.attention, work.head) == (layers, attention, 0)
    assert work.take(is_recomputed=False) == 3 * (layers + attention) and work.take(is_recomputed=False) == 0


# -- parts that fail, and the page ---------------------------------------------------------------------------------


PREPARED = {
    "facts": {
        "tiny": {"rows": 4, "lengths": {"prompt": 1, "chosen": 2, "rejected": 3}, "counts": {"dpo": {"tokens": 9}}}
    },
    "peak_measured": 1e9,
    "about": {"device": "a device", "driver": None, "cuda": None, "peak": None, "memory_gib": None},
}
CODE = {
    "prepare": f"print({json.dumps(json.dumps(PREPARED))})",
    "broken": "print('shown'); raise ValueError('no | kernel')",
    "endless": "import time; time.sleep(600)",
    "fine": "import pathlib; input(); pathlib.Path(COUNT).open('a').write('x'); print('{\"attention\": []}')",
}


def bench_of(folder, monkeypatch, parts):
    """A benchmark whose parts are one-line programs."""
    monkeypatch.setattr(gpu, "parts_of", lambda scale: parts)
    bench = gpu.GPUBench(folder / "root", folder / "docs", TINY, minutes=9, command="the command")
    code = {name: text.replace("COUNT", repr(str(folder / "count"))) for name, text in CODE.items()}
    bench.words = lambda part: [sys.executable, "-c", code[part.job.get("code", part.name)]]
    return bench


def test_a_part_that_fails_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    parts = [
        Part("losses", "losses", 30, {"code": "broken"}),
        Part("resume", "resume", 1, {"code": "endless"}),
        Part("attention", "attention", 30, {"code": "fine"}),
        Part("demo", "demo", 30, {"code": "broken"}),
    ]
    bench_of(tmp_path, monkeypatch, parts).run([])
    page = (tmp_path / "docs" / "benchmarks-gpu.md").read_text()
    assert "| losses against the CPU's | failed: ValueError: no \\| kernel |" in page
    assert "of an undisturbed one | failed: not complete after 1 s |" in page
    results = json.loads((tmp_path / "docs" / "benchmarks-gpu.json").read_text())["parts"]
    assert results["attention"]["attention"] == [] and "failed" in results["demo"]
    # The same command again: what is finished is not measured again.
    bench_of(tmp_path, monkeypatch, parts).run(["attention", "demo"])
    assert (tmp_path / "count").read_text() == "x"
    assert str(tmp_path) not in page and "the command" in page


def test_after_the_time_no_part_is_started_and_its_row_says_so(tmp_path, monkeypatch):
    bench = bench_of(
        tmp_path,
        monkeypatch,
        [Part(name, name, 30, {"code": "fine"}) for name in ("losses", "resume", "attention", "demo")],
    )
    bench.deadline -= 9 * 60
    bench.run([])
    assert not (tmp_path / "count").exists()
    assert "not measured: the time was over" in (tmp_path / "docs" / "benchmarks-gpu.md").read_text()


def page_with(**values):
    part = next(part for part in parts_of(GPU) if part.name == "8B dpo capybara ours sdpa")
    measured = {"rows_per_s": 3.1, "tokens_per_s": 5000.0, "rows_per_s_with_reference": 2.5, "is_packed": True}
    measured |= {"flops_per_s": {"6N": 400e12, "causal": 450e12, "hardware": 500e12}, "gpu_gib": 120.4}
    about = PREPARED["about"] | {
        "device": "NVIDIA H200",
        "peak": 1000e12,
        "driver": "580",
        "cuda": "13.0",
        "memory_gib": 139.8,
    }
    page = PREPARED | {"about": about, "versions": {"torch": "2.13.0"}, "date": "2026-01-01", "command": "c"}
    return gpu_page.text_of(page | {"parts": {part.name: measured | values}}, parts_of(GPU), GPU)


def test_the_page_shows_utilisation_three_ways_and_whether_a_bar_is_reached():
    row = "| 8B | DPO | capybara | ours, `sdpa` | 3.10 | 2.50 | 5000 | 40.0% | 45.0% | 50.0% | 120 |"
    assert f"{row} ≥ 3.0 pairs/s: reached |" in page_with()
    assert "≥ 3.0 pairs/s: **missed**" in page_with(rows_per_s=2.9)
    assert "ours, `sdpa`, **rows were padded**" in page_with(is_packed=False)
    assert "numbers mean nothing" not in page_with() and "failed: not measured yet" in page_with()
    assert page_with().index("driver 580, CUDA 13.0, 140 GiB") > 0


def test_both_sides_get_the_same_rows_keys_and_steps_and_trl_only_what_is_installed(monkeypatch):
    trained = [part.job for part in parts_of(GPU) if part.function == "train"]
    for kind, rows in (("dpo", "capybara"), ("sft", "capybara"), ("dpo", "ultrafeedback"), ("reward", "capybara")):
        sides = [job for job in trained if (job["model"], job["kind"], job["set"]) == ("8B", kind, rows)]
        assert {job["is_ours"] for job in sides} == {True, False}
        assert len({(job["batch"], job["untimed"], job["timed"]) for job in sides}) == 1
        assert all(job["batch"] % job["micro_batch"] == 0 for job in sides)
    assert sum(part.limit_s >= 60 for part in parts_of(GPU)) == len(parts_of(GPU))
    monkeypatch.setattr(gpu_parts, "has", lambda module: True)
    assert gpu_parts.trl_way(GPU, "sft") == (
        "Liger, padding-free",
        "flash_attention_2",
        {"max_length": None, "use_liger_kernel": True, "padding_free": True},
    )
    monkeypatch.setattr(gpu_parts, "has", lambda module: False)
    assert gpu_parts.trl_way(GPU, "sft")[1:] == ("flex_attention", {"max_length": None, "padding_free": True})


# -- all parts for real ----------------------------------------------------------------------------------------------


class PatientBench(gpu.GPUBench):
    """Without the limits of the parts, which a busy machine may exceed."""

    def measure(self, program, part, seconds):
        return super().measure(program, part, PATIENCE)


def results_of(folder: Path, only: list[str]) -> dict:
    PatientBench(folder / "root", folder, TINY, minutes=PATIENCE / 60, command="test").run(only)
    page = json.loads((folder / "benchmarks-gpu.json").read_text())
    assert "prepare" not in page["parts"], page["parts"]["prepare"]
    return page["parts"]


def check_training(parts: dict, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        ours, trl = (parts[f"tiny {kind} tiny {side} sdpa"] for side in ("ours", "TRL"))
        for values in (ours, trl):
            assert "failed" not in values, values
            assert values["tokens_per_s"] > 0 and len(values["step_seconds"]) == TINY.untimed + TINY.timed
            assert values["flops_per_s"]["hardware"] > 0 and values["dtype"] == "bfloat16, autocast bfloat16"
        assert ours["is_packed"]
        if kind == "dpo":  # log 2; a score head is drawn, with another spread than TRL's, and TRL's SFT packs its rows
            assert ours["losses"][0] == pytest.approx(trl["losses"][0], rel=2e-2)


def test_dpo_is_measured_on_both_sides(tmp_path):
    parts = results_of(tmp_path, ["tiny dpo"])
    check_training(parts, ("dpo",))
    values = parts["tiny dpo tiny ours sdpa"]
    assert 0 < values["rows_per_s_with_reference"] < values["rows_per_s"]


@pytest.mark.long
def test_every_part_runs_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "START_SECONDS", 0)
    slower = [Part(part.name, part.function, 600, part.job) for part in parts_of(TINY)]
    monkeypatch.setattr(gpu, "parts_of", lambda scale: slower)
    parts = results_of(tmp_path, [])
    check_training(parts, ("dpo", "sft", "reward"))
    assert {one["stage"] for one in parts["losses"]["losses"]} == {"sft", "reward_model", "dpo"}
    assert all(one["is_equal"] for one in parts["losses"]["losses"]), parts["losses"]
    resumed = {"was_killed": True, "is_equal": True, "largest_difference": 0.0, "kill_at": 4}
    assert {name: parts["resume"].get(name) for name in resumed} == resumed
    by_name = {(one["row"], one["attention"]): one for one in parts["attention"]["attention"]}
    assert by_name["pairs", "sdpa"]["error"] < 5e-2
    assert "CPU" in by_name["pairs", "flex_attention"]["failed"] and "CPU" in by_name["pairs", "varlen_attn"]["failed"]
    assert len(parts["demo"]["means"]) == 2, parts["demo"]
