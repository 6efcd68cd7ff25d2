"""Which machines have bfloat16, and what that makes of a key that is left open."""

import pytest

from data_schemas import bfloat16


@pytest.fixture(autouse=True)
def _asked_again():
    yield
    bfloat16.cpu_has_bfloat16.cache_clear()
    bfloat16.gpus_have_bfloat16.cache_clear()


@pytest.mark.parametrize(
    "lines, expected",
    [
        ("flags\t\t: fpu avx2 avx512f avx512bw avx512vl avx512_vnni", False),  # AVX-512 alone emulates
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd svebf16", False),
        ("Features\t: fp asimd i8mm bf16", True),
        ("", False),
    ],
)
def test_a_cpu_says_in_its_flags_whether_it_has_bfloat16(lines, expected, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(lines)
    monkeypatch.setattr(bfloat16, "CPU_INFO", tmp_path / "cpuinfo")
    bfloat16.cpu_has_bfloat16.cache_clear()
    assert bfloat16.cpu_has_bfloat16() is expected


@pytest.mark.parametrize("answer, expected", [("9.0\n9.0\n", True), ("9.0\n7.5\n", False), ("[N/A]\n", True)])
def test_gpus_have_bfloat16_from_ampere_on(answer, expected, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    bfloat16.gpus_have_bfloat16.cache_clear()
    assert bfloat16.gpus_have_bfloat16() is expected


@pytest.mark.parametrize(
    "stage, values, expected",
    [
        ("sft", {}, {"bf16": True}),
        ("dpo", {"bf16": None}, {"bf16": True}),
        ("sft", {"bf16": False}, {"bf16": False}),
        ("sft", {"fp16": True}, {"fp16": True}),
        ("prepare_base", {}, {}),
    ],
)
def test_only_an_open_key_of_a_stage_that_trains_is_set(stage, values, expected):
    assert bfloat16.with_precision(stage, values, has_bfloat16=True) == expected
    assert bfloat16.with_precision(stage, values, has_bfloat16=False) == values
