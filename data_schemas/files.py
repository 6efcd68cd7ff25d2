"""Reading, hashing and replacing files so that neither a crash nor a full disk leaves a partial one."""

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from data_schemas.errors import ConfigError, DataError

DISK_FULL = "the disk or its quota is full: free some space and run the same command again; finished work is kept"
FILE_TOO_LARGE = (
    "a file is larger than the limit of this shell (ulimit -f) or of the file system: raise the limit, or use another "
    "folder, and run the same command again; finished work is kept"
)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Libraries report a full disk by their own types of error, with the system's text or, as torch.save, with none.
NO_SPACE_TEXTS = ("no space left", "quota exceeded", "pytorchstreamwriter", "unexpected pos")

DOES_NOT_EXIST = "does not exist"
DIGEST = "digest"  # field of a record: the hash of all its other fields


# What a path may name besides a regular file and a folder. Opening a named pipe waits for a writer, perhaps for ever,
# and a device may never end.
SPECIAL_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path) -> None:
    """Raises DataError where the path names a pipe, a socket or a device. A missing file and a folder pass."""
    with contextlib.suppress(OSError):  # whoever opens it reports why it cannot be read
        if kind := SPECIAL_FILES.get(stat.S_IFMT(path.stat().st_mode)):
            raise DataError(f"{path} is {kind}, expected a regular file; write its content into a file first")


def space_hint(error: BaseException | None) -> str:
    """The remedy where an error, or one that caused it, says that a file could not be written for its size; else the
    empty string."""
    while error is not None:
        number, text = getattr(error, "errno", None), str(error).lower()
        if number == errno.EFBIG or "file too large" in text:
            return FILE_TOO_LARGE
        if number in NO_SPACE or any(part in text for part in NO_SPACE_TEXTS):
            return DISK_FULL
        error = error.__cause__ or error.__context__
    return ""


def exists(path: Path) -> bool:
    """Whether the path exists; False for a name that cannot, such as one that is too long."""
    try:
        return path.exists()
    except OSError:
        return False


def absent(path: Path) -> str:
    """What to say of a path that does not exist, after its name: also where a link leads to none."""
    for link in (path, *path.parents):
        try:
            if link.is_symlink() and not exists(link):
                which = "" if link == path else f"is in {link}, which "
                return f"{which}is a link to {link.readlink()}, which does not exist, or leads back to the link"
        except OSError:  # a name that no path can have
            break
    return DOES_NOT_EXIST


def check_name(path: Path | str) -> None:
    """Raises ConfigError for a path whose name is not UTF-8: no config, record or message could hold it."""
    if any("\ud800" <= character <= "\udfff" for character in str(path)):
        raise ConfigError(f"{path} has a name that is not UTF-8; rename the file or the folder")


def hash_files(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file. Several at a time, since reading and hashing release the interpreter's lock."""

    def hash_file(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        return list(pool.map(hash_file, paths))


def digest_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def short_digest(text: str) -> bytes:
    """16 bytes of the SHA-256 of a text, by which equal texts are found without holding them. Half characters count as
    their escapes."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:16]


def digest(value: object) -> str:
    """SHA-256 of a value as canonical JSON. Fingerprints are computed by it."""
    return digest_text(canonical_json(value))


def canonical_json(value: object) -> str:
    """JSON with sorted keys, without spaces, in ASCII: equal values have equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest_record(content: object) -> str:
    """SHA-256 of a record's JSON with sorted keys: the field `digest` of records on disk, computed without it."""
    return digest_text(json.dumps(content, sort_keys=True))


def with_digest(text: str) -> str:
    """A line of a file that verifies itself: the text's digest, a space, and the text."""
    return f"{digest_text(text)} {text}"


def verified_text(line: str) -> str | None:
    """The text of a line that `with_digest` wrote; None where the line is damaged or cut off."""
    expected, _, text = line.partition(" ")
    return text if expected == digest_text(text) else None


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text` so that a reader, or a crash, sees the old file or the new one, never a part."""
    with writing_atomically(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def writing_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file to write what replaces `path` when the block ends. Where it raises, `path` is as before."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the disk may be full
            partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems cannot sync folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where the file is missing or holds something else.

    Raises DataError for a pipe, a socket or a device.
    """
    check_regular(path)
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
