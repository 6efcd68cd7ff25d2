"""`alignloop export` copies verified files only, and writes the folder completely or not at all."""

import shutil
import sys
from pathlib import Path

import pytest

from pipeline import cli
from tests.pipeline.export.toy_run import MODEL, write_run

EXPORTED = sorted(name.removeprefix("model/") for name in MODEL)


@pytest.fixture
def run(tmp_path, monkeypatch) -> dict[str, Path]:
    """The folders of the run runs/toy, by step."""
    monkeypatch.chdir(tmp_path)
    return write_run(Path("runs/toy"))


@pytest.fixture
def export(monkeypatch, capsys):
    """-> exit code, stdout and stderr of `alignloop export runs/toy` with these words."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["alignloop", "export", "runs/toy", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_best_policy_is_copied_with_its_card(run, export):
    (run["round-1.dpo"] / "model" / "added.bin").write_text("not in the record")
    (run["round-1.dpo"] / "model" / "model.safetensors").chmod(0o600)
    code, out, err = export("deep/out")
    assert (code, err) == (0, "")
    assert out.startswith("exported: round-1.dpo of runs/toy to deep/out, license: unknown\n")
    assert files_in(Path("deep")) == [f"out/{name}" for name in EXPORTED]  # and no partial folder is left
    assert Path("deep/out/model.safetensors").read_text() == "weights"
    assert Path("deep/out/README.md").read_text().startswith("---\nlicense: unknown\n")
    assert Path("deep/out/model.safetensors").stat().st_mode == Path("deep/out/README.md").stat().st_mode


def test_a_named_step_is_exported_into_an_empty_folder(run, export):
    Path("out").mkdir()
    code, out, _ = export("out", "--policy", "round-0.sft", "--license", "apache-2.0")
    assert code == 0 and "exported: round-0.sft of runs/toy to out, license: apache-2.0\n" in out
    assert f"`{run['round-0.sft'].name}`" in Path("out/README.md").read_text()


def test_a_changed_weight_is_found_before_anything_is_written(run, export):
    weights = run["round-1.dpo"] / "model" / "model.safetensors"
    weights.write_text("WEIGHTS")  # the same size
    code, out, err = export("out")
    said = f"error: {run['round-1.dpo']}: model/model.safetensors was changed after it was written; move the folder "
    assert (code, out) == (2, "") and err.startswith(said) and err.count("\n") == 1
    assert not Path("out").exists()
    (run["round-1.dpo"] / "artifact.json").unlink()
    code, _, err = export("out")
    assert code == 2 and "round-1.dpo of runs/toy has no record, so it is not finished" in err


def test_a_copy_that_fails_leaves_nothing(run, export, monkeypatch):
    copy = shutil.copyfile

    def copy_until_the_disk_is_full(source: Path, target: Path) -> None:
        if source.name == "tokenizer.json":
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_until_the_disk_is_full)
    code, _, err = export("new/out")
    assert code == 1 and err.count("\n") == 1
    assert list(Path("new").iterdir()) == []
