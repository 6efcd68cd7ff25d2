"""--gguf runs llama.cpp's converter, --push calls the hub; a failure of either is one line, and keeps the export."""

from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.hf_api import HfApi

from data_schemas.errors import StageError
from pipeline.export.publish import push, write_gguf

CONVERTER = """
import sys
from pathlib import Path
folder, option, out = sys.argv[1:]
assert option == "--outfile"
Path(out).write_text("GGUF of " + Path(folder, "config.json").read_text())
"""


@pytest.fixture
def exported(tmp_path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def write_converter(folder: Path, code: str) -> Path:
    path = folder.parent / "convert_hf_to_gguf.py"
    path.write_text(code)
    return path


def test_the_converter_is_called_as_llama_cpp_documents_it(exported):
    path = write_gguf(exported, write_converter(exported, CONVERTER))
    assert path == exported / "mine.gguf" and path.read_text() == "GGUF of {}"
    assert sorted(file.name for file in exported.iterdir()) == ["config.json", "mine.gguf"]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (
            f"{CONVERTER}\nraise KeyError('no such\\narchitecture')",
            r"\(KeyError: 'no such\\narchitecture'\); the export",
        ),
        ("pass", r"\(exit code 0\); the export without GGUF is kept"),
    ],
)
def test_a_converter_that_fails_is_one_line_and_leaves_no_part(exported, code, cause):
    with pytest.raises(StageError, match=cause) as raised:
        write_gguf(exported, write_converter(exported, code))
    assert "\n" not in str(raised.value)
    assert [file.name for file in exported.iterdir()] == ["config.json"]


class Hub:
    """Records the calls of the hub's client. `error` is raised by the upload."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls, self.error = [], error

    def __call__(self, **options: object) -> "Hub":
        return self

    def create_repo(self, name: str, **options: object) -> None:
        self.calls.append(("create_repo", name, options))

    def upload_folder(self, **options: object) -> SimpleNamespace:
        self.calls.append(("upload_folder", options))
        if self.error:
            raise self.error
        return SimpleNamespace(commit_url="https://hub/acme/mine/commit/1")


def test_push_creates_a_private_repository_and_uploads_the_folder(exported, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    assert push(exported, "acme/mine", message="round-1.dpo of toy") == "https://hub/acme/mine/commit/1"
    assert hub.calls == [
        ("create_repo", "acme/mine", {"private": True, "exist_ok": True}),
        (
            "upload_folder",
            {"repo_id": "acme/mine", "folder_path": exported, "commit_message": "round-1.dpo of toy"},
        ),
    ]
    real = HfApi()
    for method, *_, options in hub.calls:  # the real client has these parameters
        assert options.keys() <= signature(getattr(real, method)).parameters.keys()


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_command_that_tries_again(exported, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub(ConnectionError("no route\nto host")))
    with pytest.raises(StageError) as raised:
        push(exported, "acme/mine", message="m")
    said = f"{exported} was not pushed to acme/mine (no route to host); the export is kept: `hf upload acme/mine "
    assert str(raised.value).startswith(said) and "\n" not in str(raised.value)
