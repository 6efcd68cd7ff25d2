"""What may follow an export: a GGUF file for llama.cpp, and a repository of the Hugging Face hub."""

import contextlib
import shlex
import subprocess
import sys
from pathlib import Path

from data_schemas.errors import ConfigError, StageError


def check_converter(converter: Path) -> None:
    """Raises ConfigError where the converter is no file."""
    if not converter.is_file():
        raise ConfigError(f"--gguf {converter} is no file; expected llama.cpp's convert_hf_to_gguf.py")


def write_gguf(folder: Path, converter: Path) -> Path:
    """Converts the model in the folder by llama.cpp's converter, and returns the file, which is in the folder.

    Raises StageError where the converter fails or writes nothing.
    """
    out = folder / f"{folder.absolute().name}.gguf"
    partial = folder / f".{out.name}.partial"
    command = [sys.executable, str(converter), str(folder), "--outfile", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    try:
        if done.returncode or not partial.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines()
            cause = lines[-1].strip() if lines else f"exit code {done.returncode}"
            raise StageError(f"{converter} did not convert {folder} ({cause}); the export without GGUF is kept")
        partial.rename(out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    return out


def check_repository(name: str) -> None:
    """Raises ConfigError for a name that the hub does not allow."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push {name!r}: {' '.join(str(error).split())}") from None


def push(folder: Path, repository: str, *, message: str) -> str:
    """Uploads the folder to a repository of the hub, which is created as a private one if it does not exist.

    Returns the address of the commit. Raises StageError where the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="alignloop")
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # the hub's client raises a dozen types
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise StageError(
            f"{folder} was not pushed to {repository} ({cause}); the export is kept: "
            f"`{shlex.join(['hf', 'upload', repository, str(folder)])}` pushes it"
        ) from None
    return str(commit.commit_url)
