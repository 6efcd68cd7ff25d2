"""A recipe with its plan and the state of its steps: what is done, what to do next, and the config of each stage.

A step's folder is `<run>/<step>-<first 8 of its fingerprint>`. It is reused if it has its record and no file is
missing, resumed if it holds a valid checkpoint or finished batches, and run otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_schemas.artifact import Artifact
from data_schemas.endpoints import PAID_ANSWERS
from data_schemas.errors import DataError
from data_schemas.files import read_json
from data_schemas.stage_keys import Keys, check_required, stages
from pipeline.recipe.resolved import Recipe
from pipeline.state import reference_log_probs
from pipeline.state.costs import Estimated
from pipeline.state.fingerprint import FileHashes, Identity, differences, identities
from pipeline.steps import BestPolicy, EvaluationFolder, File, Output, Reference, Served, Step

IDENTITY_FILE = (
    "fingerprint.json"  # the identity that the fingerprint was computed from; a later plan reports what changed
)
Action = Literal["reuse", "resume", "run", "skip", "to be hashed", "pending"]


NOT_RUN_YET = "not run yet"


@dataclass
class StepState:
    folder: Path | None
    state: str = "pending"
    why: str = ""
    seconds: float = 0.0
    artifact: Artifact | None = None
    problem: str = ""  # why it failed, in one line


@dataclass(frozen=True)
class Decision:
    action: Action
    why: str
    folder: Path | None  # None while the fingerprint is not known


@dataclass
class Run:
    """A recipe with its plan, the identities of its steps, and their states while the runner works."""

    recipe: Recipe
    steps: list[Step]
    identities: Mapping[str, Identity]
    states: dict[str, StepState] = field(default_factory=dict)
    elsewhere: dict[str, Path] = field(default_factory=dict)  # steps whose folder is outside the run's folder
    recipe_changes: list[str] = field(default_factory=list)  # from the recipe of the run before in the same folder
    selected: frozenset[str] | None = None  # the names of the steps that may run; None: all
    estimates: dict[str, Estimated] = field(default_factory=dict)  # of steps, by name, where the run was estimated

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        steps: list[Step],
        *,
        hash_limit: int | None = None,
        selected: frozenset[str] | None = None,
    ) -> "Run":
        """Computes the fingerprints of all steps. A file of more than `hash_limit` bytes is not hashed, unless its hash
        is in the cache; None: every file is hashed.

        Raises ConfigError for a function that cannot be found.
        """
        hashes = FileHashes(recipe.folder / ".hashes.json", limit=hash_limit)
        known = identities(steps, hashes=hashes, function_folder=recipe.path.absolute().parent)
        return cls(recipe, steps, known, selected=selected)

    def folder(self, name: str) -> Path | None:
        if name in self.elsewhere:
            return self.elsewhere[name]
        fingerprint = self.identities[name].fingerprint
        return self.recipe.folder / f"{name}-{fingerprint[:8]}" if fingerprint else None

    def decide(self, step: Step) -> Decision:
        """Whether a step is reused, resumed, run, skipped, or left pending as it is not selected; and why.

        Changes nothing. Raises DataError for a damaged record.
        """
        decision = self._decide(step)
        if self.selected is None or step.name in self.selected or decision.action not in ("run", "resume"):
            return decision
        return Decision("pending", decision.why, decision.folder)

    def _decide(self, step: Step) -> Decision:
        folder = self.folder(step.name)
        if folder is None:
            why = self._why(step)
            return Decision("run" if why == NOT_RUN_YET else "to be hashed", why, None)
        if reason := self._stopped_before(step) or self._without_prompts(step):
            return Decision("skip", reason, folder)
        artifact = Artifact.read(folder)
        if artifact is not None:
            missing = artifact.missing(folder)
            if not missing and artifact.fingerprint == self.identities[step.name].fingerprint:
                return Decision("reuse", "unchanged", folder)
            reason = f"{missing[0]} is missing or has another size" if missing else "its record has another fingerprint"
            return Decision("run", reason, folder)
        if progress := finished_part(folder):
            return Decision("resume", f"from {progress}", folder)
        why = self._why(step)
        if folder.is_dir():
            cause = (read_json(folder / "outcome.json") or {}).get("cause")
            why = f"did not finish: {cause}" if cause else "did not finish"
        identity = self.identities[step.name].content
        if reference_log_probs.are_there(self.recipe.folder, step, identity, identity_file=IDENTITY_FILE):
            why += f"; {reference_log_probs.ARE_THERE}"
        return Decision("run", why, folder)

    def _stopped_before(self, step: Step) -> str:
        """The evaluation of an earlier round whose gate stopped the run, with its reason; empty if none did."""
        for other in self.steps:
            if other.stage != "evaluate_policy" or (other.round or 0) >= (step.round or 0):
                continue
            folder = self.folder(other.name)
            artifact = Artifact.read(folder) if folder else None
            if artifact is not None and artifact.metrics.get("gate") == "stop":
                return f"{other.name} stopped the run: {artifact.metrics.get('gate_reason')}"
        return ""

    def _without_prompts(self, step: Step) -> str:
        """Why an evaluation that only writes sample answers has no prompt to answer; empty where it has one."""
        prompts = [item for item in step.inputs.get("prompts", []) if isinstance(item, Output)]
        if step.stage != "evaluate_policy" or not prompts or not all(prompt.optional for prompt in prompts):
            return ""
        folders = {prompt.step: self.folder(prompt.step) for prompt in prompts}
        records = {name: Artifact.read(folder) if folder else None for name, folder in folders.items()}
        for prompt in prompts:
            record = records[prompt.step]
            if record is None or prompt.name in record.outputs:
                return ""
        return "no prompt is held out: raise data.validation_share or give data.evaluation_prompts"

    def _why(self, step: Step) -> str:
        """What changed since the newest folder of the same step."""
        files = [path / IDENTITY_FILE for path in self.recipe.folder.glob(f"{step.name}-????????")]
        identities_by_time = [
            (path.stat().st_mtime_ns, str(path), content) for path in files if (content := read_json(path)) is not None
        ]
        if not identities_by_time:
            return NOT_RUN_YET
        *_, newest = max(identities_by_time, key=lambda item: item[:2])
        lines = differences(step, newest, self.identities[step.name].content)
        return ", ".join(lines) or "not finished yet"

    def resolve(self, reference: Reference) -> Path | str | None:
        """The path or hub name of a reference; None for an optional output that was not written.

        Raises DataError where a step has no record, ranks too few policies, or lacks the output.
        """
        match reference:
            case EvaluationFolder(name):
                return self.folder(name)
            case BestPolicy(name, rank):
                choices = record_of(self.folder(name)).choices
                if rank >= len(choices):
                    raise DataError(
                        f"{name} ranks {len(choices)} policies, too few for number {rank + 1}; move its "
                        f"folder away ({self.folder(name)})"
                    )
                return self.resolve(Output(choices[rank].step, "model"))
            case Output(name, output, optional):
                folder = self.folder(name)
                outputs = record_of(folder).outputs
                if output in outputs and folder is not None:
                    return folder / outputs[output]
                if optional:
                    return None
                raise DataError(f"{name} wrote no {output}: the split is empty; it needs more rows ({folder})")
            case Served(name):
                return name
            case _:
                return reference.path

    def stage_config(self, step: Step) -> Keys:
        """The keys that the stage is started with; a key that is not here has its default.

        Raises ConfigError for a required key without a value, and DataError as `resolve` does.
        """
        known = stages()[step.stage].keys
        keys = dict(step.keys)
        for key, references in step.inputs.items():
            resolved = [self.resolve(reference) for reference in references]
            paths = [str(path) for path in resolved if path is not None]
            if (shares := f"{key}_shares") in keys:
                keys[shares] = [share for share, path in zip(keys[shares], resolved, strict=True) if path is not None]
            if references and isinstance(references[0], File):
                keys[key] = [item.source.value() for item in references if isinstance(item, File)]
            elif paths:
                keys[key] = paths if known[key].is_list else paths[0]
        check_required(step.stage, keys, where=step.name)
        policies = [
            record_of(self.folder(item.step)).choices[item.rank].step
            for item in step.inputs.get("policies", [])
            if isinstance(item, BestPolicy)
        ]
        runner_keys = {
            "output_dir": str(self.folder(step.name)),
            "step": step.name,
            "run_group": self.recipe.name,
            "fingerprint": self.identities[step.name].fingerprint,
            "policy_names": policies or None,
            "use_cpu": step.launch.device == "cpu" or None,
        }
        return keys | {key: value for key, value in runner_keys.items() if key in known and value is not None}


def record_of(folder: Path | None) -> Artifact:
    """The record of a step that is done. Raises DataError if it is damaged or no longer there."""
    artifact = Artifact.read(folder) if folder else None
    if artifact is None:
        raise DataError(f"{folder}: its record disappeared during the run; run the recipe again")
    return artifact


def finished_part(folder: Path) -> str:
    """What an unfinished step can be resumed from: its newest checkpoint, or finished batches; empty if nothing."""
    numbers = [path.parent.name.partition("-")[2] for path in folder.glob("checkpoints/checkpoint-*/whole.json")]
    if steps := [int(step) for step in numbers if step.isdigit()]:
        return f"checkpoint-{max(steps)}"
    has_answers = any(folder.glob("checkpoints/*/[0-9]*.json")) or (folder / PAID_ANSWERS).exists()
    return "the answers it finished" if has_answers else ""
