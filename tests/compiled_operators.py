"""DeepSpeed's compiled operators are kept between test sessions: one compilation per machine and version.

Each session compiles and loads in its own folder, so that a killed session leaves its lock file to nobody. At its start
the folder is filled from the cache; at its end what it compiled is added to the cache, by a rename.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where operators of these versions and this kind of CPU are kept: they are compiled for the CPU's instructions."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cpu_info = Path("/proc/cpuinfo")
    flags = (
        [line for line in cpu_info.read_text().splitlines() if line.startswith("flags")] if cpu_info.exists() else []
    )
    versions = [sys.version, *(importlib.metadata.version(name) for name in ("torch", "deepspeed"))]
    key = hashlib.sha256("\n".join([*versions, platform.machine(), *flags[:1]]).encode()).hexdigest()[:16]
    return caches / "alignloop-tests" / "torch-extensions" / key


def operators(folder: Path) -> list[Path]:
    """The folders of completely compiled operators, relative to `folder`: they hold a library and no lock.

    Below TORCH_EXTENSIONS_DIR torch has one folder for each operator.
    """
    libraries = folder.glob("*/*.so")
    return sorted({path.parent.relative_to(folder) for path in libraries if not (path.parent / "lock").exists()})


def restore(cache: Path, session: Path) -> None:
    """Copies every cached operator into the folder of a session. Times are kept, since ninja compares them."""
    for operator in operators(cache):
        shutil.copytree(cache / operator, session / operator)


def store(session: Path, cache: Path) -> None:
    """Adds the operators that a session compiled to the cache. Of two sessions at once the first one wins."""
    for operator in operators(session):
        if (cache / operator).exists():
            continue
        (cache / operator).parent.mkdir(parents=True, exist_ok=True)
        copy = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache)) / operator.name
        shutil.copytree(session / operator, copy)
        with contextlib.suppress(OSError):  # the other session's is there
            copy.rename(cache / operator)
        shutil.rmtree(copy.parent)
