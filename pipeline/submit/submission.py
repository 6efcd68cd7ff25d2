"""What the job files of all schedulers have in common: their folder, the command of a step, and names."""

import hashlib
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_schemas.errors import ConfigError
from pipeline.submit.jobs import Job

SUBMIT, JOBS = "submit.sh", "jobs"
LONGEST_NAME = 63  # characters of a label in RFC 1123
MAX_RESTARTS = 20  # so that a step that never gets to a checkpoint ends
INTERRUPTED = 143  # exit code of `alignloop run` after SIGTERM: a checkpoint was saved, and the step can go on


@dataclass(frozen=True)
class Submission:
    """A run for which job files are written. `program` is the command `alignloop`, which `recipe` and `settings` are
    given to as the user typed them, in the working directory.
    """

    folder: Path  # of the job files
    run: str
    recipe: str
    settings: Sequence[str]  # of --set
    program: Sequence[str]

    def clear_folder(self, *others: str) -> None:
        """Makes the folder with an empty `jobs`, and removes what an earlier call wrote: `jobs` and the other files.

        Raises ConfigError for a folder that holds something else.
        """
        is_empty = self.folder.is_dir() and not any(self.folder.iterdir())
        if self.folder.exists() and not (self.folder / SUBMIT).is_file() and not is_empty:
            raise ConfigError(
                f"--out {self.folder} exists and was not written by `alignloop submit`; give another folder"
            )
        shutil.rmtree(self.folder / JOBS, ignore_errors=True)
        for name in others:
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / JOBS).mkdir(parents=True)

    def command(self, job: Job, *, first: str = "") -> str:
        """The shell command that runs the step of a job. `first` is text of the shell before the user's own settings,
        which take precedence.
        """
        settings = [word for setting in self.settings for word in ("--set", setting)]
        parts = [shlex.join([*self.program, "run", self.recipe]), first]
        return " ".join(filter(None, [*parts, shlex.join([*settings, "--only", job.step.name])]))

    def name(self, job: Job) -> str:
        """A label of RFC 1123 for the job: a to z, 0 to 9 and hyphens, at most 63 characters, a letter first.

        It ends with a digest of the job's folder and step, since two steps or runs may otherwise have the same one.
        """
        return label(f"{self.run}-{job.step.name}", f"{self.folder}\0{job.step.name}")

    @property
    def label(self) -> str:
        """A label of RFC 1123 that all jobs of the folder have."""
        return label(self.run, str(self.folder))


def label(text: str, identity: str) -> str:
    """A label of RFC 1123 that shows the text as far as its characters and its length allow, and is different for each
    identity."""
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    plain = re.sub("[^a-z0-9]+", "-", text.lower())[: LONGEST_NAME - len(digest) - 1].strip("-")
    if not plain[:1].isalpha():
        plain = f"run-{plain}"[: LONGEST_NAME - len(digest) - 1].strip("-")
    return f"{plain}-{digest}"


def file_names(jobs: Sequence[Job], ending: str) -> list[str]:
    """The files of the jobs, numbered in order, relative to the folder."""
    return [f"{JOBS}/{place:02d}-{job.step.name}.{ending}" for place, job in enumerate(jobs, 1)]


def why_limit(job: Job) -> str:
    return "its time limit is estimated" if job.is_estimated else "its time limit is the default, not an estimate"
