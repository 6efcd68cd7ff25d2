"""The cache of compiled operators: what enters it, and what a session gets from it."""

import os
from pathlib import Path

import pytest

from tests.compiled_operators import cache_folder, operators, restore, store


def compile_toy(session: Path, name: str, *, content: str = "library", is_locked: bool = False) -> Path:
    """Where torch compiles an operator of this name in a session."""
    from torch.utils import cpp_extension

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(session))
        folder = Path(cpp_extension._get_build_directory(name, verbose=False))
    (folder / f"{name}.so").write_text(content)
    os.utime(folder / f"{name}.so", ns=(1_000_000_001, 1_000_000_001))
    if is_locked:
        (folder / "lock").touch()
    return folder


def test_an_operator_is_compiled_once_and_then_restored_with_its_time(tmp_path):
    compile_toy(tmp_path / "first", "shm")
    store(tmp_path / "first", tmp_path / "cache")
    restore(tmp_path / "cache", tmp_path / "second")
    restored = tmp_path / "second" / "shm" / "shm.so"
    assert restored.read_text() == "library"
    assert restored.stat().st_mtime_ns == 1_000_000_001  # else ninja would compile again
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["shm"]  # nothing partial is left


def test_an_operator_of_a_killed_compilation_enters_no_cache_and_no_session(tmp_path):
    compile_toy(tmp_path / "killed", "locked", is_locked=True)
    (tmp_path / "killed" / "unlinked").mkdir()
    store(tmp_path / "killed", tmp_path / "cache")
    assert not operators(tmp_path / "cache")
    compile_toy(tmp_path / "cache", "locked", is_locked=True)
    restore(tmp_path / "cache", tmp_path / "session")
    assert not (tmp_path / "session").exists()


def test_of_two_sessions_that_compile_at_once_the_first_enters_the_cache(tmp_path):
    for name in ("first", "second"):
        compile_toy(tmp_path / name, "shm", content=name)
        store(tmp_path / name, tmp_path / "cache")
    assert (tmp_path / "cache" / "shm" / "shm.so").read_text() == "first"


def test_another_version_has_another_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = cache_folder()
    assert here == cache_folder() and here.is_relative_to(tmp_path)
    for changed in ("torch", "deepspeed"):
        with monkeypatch.context() as patch:
            patch.setattr("importlib.metadata.version", lambda name, other=changed: "9" if name == other else "1")
            folder = cache_folder()
            patch.setattr("importlib.metadata.version", lambda name: "1")
            assert folder != cache_folder()


def test_this_session_uses_its_own_folder_and_not_the_cache():
    session = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    assert session.is_dir() and not session.is_relative_to(cache_folder())


@pytest.mark.parametrize("missing", ["cache", "session"])
def test_without_a_cache_or_operators_nothing_happens(tmp_path, missing):
    restore(tmp_path / "cache", tmp_path / "session")
    store(tmp_path / "session", tmp_path / "cache")
    assert not (tmp_path / missing).exists()
