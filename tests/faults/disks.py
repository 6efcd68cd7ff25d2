"""A small disk that can be filled or made read-only, and the leftovers on it."""

import shutil
import subprocess
from pathlib import Path

DISK_FULL = "the disk or its quota is full: free some space and run the same command again; finished work is kept"
READ_ONLY = "the disk has become read-only: find out why it is mounted so, and run the same command again"


class Disk:
    """A separate file system in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    def fill(self, *, leave_kilobytes: int = 0) -> None:
        free = shutil.disk_usage(self.folder).free - leave_kilobytes * 1024
        with self.filler.open("ab") as file:
            file.write(bytes(max(0, free)))

    def empty(self) -> None:
        self.filler.unlink()

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)


def leftovers(folder: Path) -> list[str]:
    """Files that were being written and are of no use any more."""
    names = [path for path in folder.rglob("*") if ".partial" in path.name]
    return [str(path.relative_to(folder)) for path in [*names, *folder.glob("checkpoints/.saving/*")]]
