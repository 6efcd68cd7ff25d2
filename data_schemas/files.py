"""Reading, hashing and replacing files so that neither a crash nor a full disk leaves half of one."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

DISK_FULL = "the disk is full: free some space and run the same command again; what is finished is kept"


DIGEST = "digest"  # in the file: of all else that the record says


def hash_files(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file. Several at a time: reading and hashing let go of the interpreter's lock."""

    def of(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        return list(pool.map(of, paths))


def digest_of(content: Any) -> str:
    """SHA-256 of what a file says besides this."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text` so that a reader, or a crash, sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what a full disk took of it
            partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Until it is on the disk, a file's content or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems sync no folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that a file holds, or None where it is missing or holds none."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
