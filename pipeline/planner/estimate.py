"""The estimate of a run: one StepEstimate a step, with totals and the critical path."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_schemas.cost_request import Probe, ProbeAnswer
from data_schemas.stage_keys import stages, with_defaults
from pipeline.launch import preview
from pipeline.planner import history
from pipeline.planner.devices import Device, device_of
from pipeline.planner.memory import Memory, memory_of, micro_batch_tokens, needed, trained_model
from pipeline.planner.models import WRITER, SizedModel, base_model, outside_model, reward_base_of, writer_of
from pipeline.planner.questions import Estimator, estimator
from pipeline.planner.rows import RowsOfRun, existing_files
from pipeline.planner.speed import Seconds, seconds_of
from pipeline.planner.work import Work, work_of
from pipeline.recipe.resolved import Recipe
from pipeline.state.run import Run
from pipeline.steps import REWARD_BASE, SCORERS, Model, Output, Reference, Step, source_steps

BYTES_OF_TOKEN = 5  # of a row's text
BYTES_OF_ROW = 400  # of a row's other fields
CHECKPOINTS_AT_A_TIME = 3  # save_total_limit and the one that is being written
UNFINISHED = ("run", "resume", "to be hashed")


@dataclass(frozen=True)
class StepEstimate:
    """What one step will need. A step that is reused needs nothing."""

    step: Step
    action: str
    device: Device | None
    work: Work
    trainable: int  # 0 for a step that trains nothing
    parameters: int  # with adapters
    base_parameters: int
    memory: Memory | None
    seconds: Seconds | None
    disk: float  # bytes that stay
    temporary_disk: float  # bytes of checkpoints while it runs
    price: float | None  # in the unit of price_per_gpu_hour, for the middle of the time

    @property
    def needed(self) -> float | None:
        """Bytes of memory that the step needs of its device; None where one of them is not known."""
        if self.memory is None or self.device is None:
            return None
        return needed(self.memory, self.step, self.device)

    @property
    def fits(self) -> bool | None:
        return None if self.needed is None or self.device is None else self.needed <= self.device.usable


@dataclass(frozen=True)
class RunEstimate:
    """The estimates of all steps, in the order of the plan."""

    steps: Sequence[StepEstimate]
    model: SizedModel
    free_disk: int
    notes: Sequence[str] = field(default_factory=list)

    @property
    def to_run(self) -> list[StepEstimate]:
        return [estimate for estimate in self.steps if estimate.action in UNFINISHED]

    def total_seconds(self) -> tuple[float, float] | None:
        """The range of the sum over all steps that run, which run one after the other."""
        known = [estimate.seconds for estimate in self.to_run if estimate.seconds]
        if len(known) < len(self.to_run):
            return None
        return sum(seconds.low for seconds in known), sum(seconds.high for seconds in known)

    def critical_path(self) -> tuple[list[str], float]:
        """The chain of steps, each reading from the one before, that takes the longest, and its middle in seconds."""
        longest: dict[str, tuple[list[str], float]] = {}
        for estimate in self.to_run:
            before = [longest[name] for name in source_steps(estimate.step) if name in longest]
            chain, seconds = max(before, key=lambda item: item[1], default=([], 0.0))
            own = estimate.seconds.middle if estimate.seconds else 0.0
            longest[estimate.step.name] = ([*chain, estimate.step.name], seconds + own)
        return max(longest.values(), key=lambda item: item[1], default=([], 0.0))

    def total_price(self) -> float | None:
        prices = [estimate.price for estimate in self.to_run]
        known = [price for price in prices if price is not None]
        return sum(known) if known else None

    def disk(self) -> float:
        """Bytes that the run adds to the disk at most: what stays, and the largest set of checkpoints."""
        kept = sum(estimate.disk for estimate in self.to_run)
        return kept + max((estimate.temporary_disk for estimate in self.to_run), default=0.0)


class Planner:
    """Estimates the steps of a run. `asks` is the program with torch; without it only the model states are known."""

    def __init__(self, run: Run, asks: Estimator | None, *, gpu: str | None = None, probes: bool = True) -> None:
        self.run, self.asks, self.gpu, self.probes = run, asks, gpu, probes
        self.probed: dict[str, list[tuple[int, ProbeAnswer]]] = {}  # by everything but the number of tokens
        self.notes: dict[str, None] = {}
        self.cpu_rate: float | None = None
        self.outside: dict[str, SizedModel] = {}  # models that score, by their folder or hub name
        self.model = base_model(run, asks, self._note)
        # Models of steps that are not the run's: they write paraphrases, or are what reward models start from.
        self.others = {step.name: writer_of(step, asks, self._note) for step in run.steps if WRITER in step.inputs}
        if reward_base := reward_base_of(run, asks, self._note):
            names = [step.name for step in run.steps if preview.starts_from_reward_base(run, step)]
            self.others |= dict.fromkeys([REWARD_BASE, *names], reward_base)
        self.scorers = {step.name: self._scorers(step) for step in run.steps}
        lengths = asks.row_lengths(preview.tokenizer_source(run), existing_files(run)) if asks else {}
        self.rows = RowsOfRun(run, lengths)
        for problem in {found["problem"] for found in lengths.values() if found["problem"]}:
            self._note(f"four characters count as a token, since the tokenizer can't be read: {problem}")

    def estimate(self) -> RunEstimate:
        works = {step.name: self.work(step) for step in self.run.steps}
        parameters = {step.name: model.parameters if (model := self.model_of(step)) else 0 for step in self.run.steps}
        finished = history.finished_steps(self.run, works, parameters)
        estimates = [self.of_step(step, works[step.name], finished) for step in self.run.steps]
        if any(estimate.device is None for estimate in estimates):
            self._note("no GPU is known: name one with --gpu, as in --gpu h100, or launch: {gpu: h100}")
        return RunEstimate(estimates, self.model, free_disk(self.run.recipe), list(self.notes))

    def model_of(self, step: Step) -> SizedModel | None:
        """The model of a step: the run's, or another one that the recipe names, which is None behind an endpoint."""
        return self.others.get(step.name, self.model)

    def work(self, step: Step) -> Work:
        """The work of a step with its keys."""
        model = self.model_of(step)
        scorers = [scorer.shape for scorer in self.scorers[step.name]]
        return work_of(step, self.rows, model.shape if model else None, scorers)

    def of_step(self, step: Step, work: Work, finished: Sequence[history.FinishedStep] = ()) -> StepEstimate:
        """The estimate of a step with this work."""
        model, launch = self.model_of(step), step.launch
        device = self._device(step)
        action = self.run.decide(step).action
        own_parameters = parameters = model.parameters if model else 0
        trainable = 0
        if model and stages()[step.stage].traits.kind == "trains":
            trained = trained_model(step, with_defaults(step.stage, step.keys), model.shape, model.parameters)
            parameters, trainable = trained.parameters, trained.trainable
        memory = None
        if action != "reuse":
            memory = self.memory(step, work)
        shape = (model or self.model).shape
        seconds = seconds_of(step, work, shape, device, parameters=own_parameters, finished=finished)
        price = None
        if launch.price_per_gpu_hour is not None and seconds is not None and launch.device == "gpu":
            price = seconds.middle / 3600 * launch.num_processes * launch.price_per_gpu_hour
        kept, temporary = disk_of(step, work, model or self.model, parameters=parameters, trainable=trainable)
        return StepEstimate(
            step, action, device, work, trainable, parameters, own_parameters, memory, seconds, kept, temporary, price
        )

    def memory(self, step: Step, work: Work) -> Memory | None:
        """The memory of a step with this work; None for a stage that holds no model on a device."""
        model = self.model_of(step)
        if model is None:
            return None
        probe = self.probe if self.asks and self.probes else None
        return memory_of(
            step,
            model.config,
            model.shape,
            work,
            parameters=model.parameters,
            saved_width=model.width,
            scorers=self.scorers[step.name],
            probe=probe,
        )

    def probe(self, probe: Probe) -> ProbeAnswer:
        """The memory of a micro-batch, asked once for steps that are alike."""
        assert self.asks is not None
        keys = {name: value for name, value in probe["keys"].items() if name not in WITHOUT_EFFECT}
        forms = sorted({len(row["branches"]) for row in probe["micro_batch"]})
        form = {**probe, "keys": keys, "micro_batch": [len(probe["micro_batch"]), forms]}
        key, tokens = json.dumps(form, sort_keys=True, default=str), micro_batch_tokens(probe)
        for known, answer in self.probed.get(key, []):
            if max(tokens, known) < SAME_SIZE * min(tokens, known):
                return scaled(answer, tokens / known)
        answer = self.asks.probe(probe)
        self.probed.setdefault(key, []).append((tokens, answer))
        if problem := answer["problem"]:
            self._note(f"{probe['stage']}: activations are not known ({problem})")
        return answer

    def _scorers(self, step: Step) -> list[SizedModel]:
        """The models that score the answers of a step."""
        found = [
            self._scorer(reference, f"{step.section}.{name}")
            for name in SCORERS
            for reference in step.inputs.get(name, [])
        ]
        return [model for model in found if model is not None]

    def _scorer(self, reference: Reference, key: str) -> SizedModel | None:
        """A model that scores: one that the run trains, or one from outside. None for a model of another machine."""
        if isinstance(reference, Output):
            return self.others.get(reference.step, self.model)
        if not isinstance(reference, Model):
            return None
        if reference.path not in self.outside:
            self.outside[reference.path] = outside_model(reference, key, self.asks, self._note) or self.model
        return self.outside[reference.path]

    def _device(self, step: Step) -> Device | None:
        device = device_of(step.launch, gpu=self.gpu, where=f"{self.run.recipe.path}: {step.section}.launch")
        if device is not None and device.is_cpu and self.asks is not None:
            self.cpu_rate = self.cpu_rate or self.asks.cpu_rate()
            device = replace(device, peak=self.cpu_rate)
        return device

    def _note(self, text: str) -> None:
        self.notes[text] = None


# Keys without an effect on the memory of a micro-batch.
WITHOUT_EFFECT = frozenset(
    "seed learning_rate lr_scheduler_type lr_scheduler_kwargs beta num_train_epochs max_steps warmup_steps "
    "weight_decay eval_steps save_steps logging_steps save_strategy save_total_limit patience keep at_end "
    "global_batch_size per_device_train_batch_size per_device_eval_batch_size strengths max_similarity "
    "train_data_shares eval_data_shares validation_share report_to run_group step fingerprint".split()
)

SAME_SIZE = 1.25  # micro-batches whose tokens differ by less share a probe


def scaled(answer: ProbeAnswer, factor: float) -> ProbeAnswer:
    """The answer for so many times the tokens, to which activations and logits are proportional."""
    more = (factor - 1) * answer["activations"]
    return {
        **answer,
        "peak": answer["peak"] + more,
        "activations": answer["activations"] + more,
        "logits": factor * answer["logits"],
    }


def disk_of(step: Step, work: Work, model: SizedModel, *, parameters: int, trainable: int) -> tuple[float, float]:
    """Bytes that a step's folder keeps, and those of its checkpoints while it runs."""
    keys = with_defaults(step.stage, step.keys)
    kind = stages()[step.stage].traits.kind
    if kind == "trains":
        whole = 4 * model.parameters
        checkpoint = 4 * parameters + 8 * trainable if keys.get("save_strategy") != "no" else 0
        return model.width * model.parameters, CHECKPOINTS_AT_A_TIME * checkpoint + whole
    if step.stage in ("prepare_base", "average_models"):
        return model.width * model.parameters, 0.0
    return work.new_tokens * BYTES_OF_TOKEN + work.answers * BYTES_OF_ROW, 0.0


def free_disk(recipe: Recipe) -> int:
    """Free bytes on the disk of the run's folder."""
    place = next(folder for folder in (recipe.folder, *recipe.folder.parents) if folder.is_dir())
    return shutil.disk_usage(place).free


@contextlib.contextmanager
def planner_of(run: Run, scratch: Path, *, gpu: str | None = None, probes: bool = True) -> Iterator[Planner]:
    """A planner with its program; without `probes` activations are left out.

    Runs `prepare_data` in the scratch folder where it has not run, to know the rows. Raises ConfigError for a GPU or a
    model that is not known, and ConfigError or StageError where the data can't be prepared.
    """
    preview.prepare_data(run, scratch)
    with estimator(run.steps[0], run.recipe.path.absolute().parent) as asks:
        yield Planner(run, asks, gpu=gpu, probes=probes)
