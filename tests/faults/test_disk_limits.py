"""A file that can't be written for its size, by any error of the system or of a library: one line with a path."""

import errno
import os
import resource
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from data_schemas.artifact import Artifact
from data_schemas.files import DISK_FULL, FILE_TOO_LARGE, read_json, space_hint
from engine.models import loading
from engine.training import loop
from tests.faults.disks import leftovers
from tests.faults.runs import training
from tests.stage_runs import ROOT, call_stage, run_here


@pytest.mark.parametrize(
    "error, hint",
    [
        (OSError(errno.ENOSPC, "translated text"), DISK_FULL),
        (OSError(errno.EDQUOT, "translated text"), DISK_FULL),
        (OSError(errno.EFBIG, "translated text"), FILE_TOO_LARGE),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), FILE_TOO_LARGE),
        (SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), DISK_FULL),
        (
            RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file"),
            DISK_FULL,
        ),
        (OSError(errno.EACCES, "no access"), ""),
        (RuntimeError("a size that is too large"), ""),
    ],
)
def test_every_error_of_a_full_disk_has_its_remedy(error, hint):
    assert space_hint(error) == hint
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("saving failed") from cause
    except RuntimeError as outer:
        assert space_hint(outer) == hint


@pytest.mark.parametrize("number, hint", [(errno.EDQUOT, DISK_FULL), (errno.EFBIG, FILE_TOO_LARGE)])
def test_a_checkpoint_that_does_not_fit_is_one_line_with_the_folder(
    number, hint, tiny_model, rows, tmp_path, monkeypatch, capfd
):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))  # as write() does: without a file's name

    monkeypatch.setattr(loop, "write_marker", fail)
    assert call_stage("sft", tmp_path / "sft", **training(tiny_model, rows)) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if line]
    assert said[-1] == f"error: OSError: [Errno {number}] {os.strerror(number)} in {tmp_path / 'sft'}; {hint}"
    assert not any("Traceback" in line for line in said)
    outcome = read_json(tmp_path / "sft" / "outcome.json")
    assert outcome is not None and (outcome["state"], outcome["hint"], outcome["kind"]) == ("failed", hint, "error")
    assert Artifact.read(tmp_path / "sft") is None
    monkeypatch.undo()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_here("sft", tmp_path / "sft", **training(tiny_model, rows))
    assert not leftovers(tmp_path / "sft")


@pytest.mark.parametrize("kilobytes", [8, 100])
def test_a_limit_on_the_size_of_files_is_one_line(kilobytes, tiny_base, tmp_path):
    """As with `ulimit -f`: the weights do not fit; with 8 kB, neither does the tokenizer."""
    words = ["--model_name_or_path", str(tiny_base), "--chat_template", "chatml", "--report_to", "none", "--use_cpu"]
    limit = kilobytes * 1024

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, str(ROOT / "stages" / "prepare_base.py"), *words, "--output_dir", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=limited,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert said[-1].startswith("error: ") and str(tmp_path / "out") in said[-1] and said[-1].endswith(FILE_TOO_LARGE)
    assert max(path.stat().st_size for path in tmp_path.rglob("*")) <= limit
    assert Artifact.read(tmp_path / "out") is None


def test_a_full_cache_of_downloads_is_not_a_damaged_model(monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/cache/model.safetensors")

    for cls, call in (
        ("AutoTokenizer", loading.read_tokenizer),
        ("AutoConfig", loading.read_config),
        ("AutoModelForCausalLM", loading.load_causal),
    ):
        monkeypatch.setattr(getattr(loading, cls), "from_pretrained", fail)
        with pytest.raises(OSError, match="quota exceeded: '/cache"):
            call("owner/name")
