"""The memory of a step by bucket, on each device and on each machine's host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from data_schemas.cost_request import Probe, ProbeAnswer
from data_schemas.stage_keys import Keys, with_defaults
from data_schemas.vllm_keys import SHARE_BESIDE_TRAINING
from pipeline.planner.devices import GIB, Device
from pipeline.planner.model_states import FOUR_BITS, NESTED_BITS, ModelStates, TrainedModel, model_states
from pipeline.planner.models import SizedModel
from pipeline.planner.rows import heaviest_micro_batch, tokens_of
from pipeline.planner.shapes import Shape
from pipeline.planner.work import GENERATING, Work, micro_batch_of
from pipeline.steps import Step

PROCESS = 0.7 * GIB  # of Python with torch, transformers and trl on a CPU; on a GPU also the libraries of CUDA
GPU_PROCESS = 3.0 * GIB
LOGITS_COPIES = 3  # of a step of generation: logits, sorted, probabilities; float32
ProbeMemory = Callable[[Probe], ProbeAnswer]


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. On a CPU it is the memory of the machine."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    reference: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    kv_cache: float = 0.0
    host: float = 0.0  # on each machine, beside its devices
    is_probed: bool = False  # activations are measured on tensors without content; else they are left out

    @property
    def device(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self) if field.name not in ("host", "is_probed"))


def is_mixed(keys: Keys) -> bool:
    return bool(keys.get("bf16") or keys.get("fp16"))


def trained_model(step: Step, keys: Keys, shape: Shape, parameters: int) -> TrainedModel:
    """The parameters of a training step, with adapters where it has them. `parameters` are those of the base model."""
    if step.stage == "reward_model" and not shape.is_tied:
        parameters += shape.hidden - shape.head
    if not keys.get("use_peft"):
        return TrainedModel(parameters, parameters, shape.largest_layer)
    trainable = shape.adapters(keys["lora_r"], keys.get("lora_target_modules"), dora=bool(keys.get("use_dora")))
    if step.stage == "reward_model":
        trainable += shape.hidden  # the score head, which PEFT copies
    return TrainedModel(
        parameters + trainable,
        trainable,
        shape.largest_layer,
        quantised=shape.layers * shape.layer_matrices if keys.get("load_in_4bit") else 0,
        quantised_bits=NESTED_BITS if keys.get("use_bnb_nested_quant") else FOUR_BITS,
        frozen_width=2 if is_half(keys) else 4,
    )


def is_half(keys: Keys) -> bool:
    """Whether the weights are loaded in 16 bits."""
    return str(keys.get("dtype") or "float32") in ("bfloat16", "float16")


def states_of(step: Step, keys: Keys, model: TrainedModel) -> ModelStates:
    """Weights, gradients and optimizer of a training step."""
    launch = step.launch
    states = model_states(
        model,
        profile=launch.profile,
        processes=launch.num_processes,
        machines=launch.num_machines,
        mixed=is_mixed(keys),
    )
    if launch.num_processes > 1 and launch.profile == "ddp":  # the buckets in which DDP averages gradients
        states = ModelStates(states.weights, 2 * states.gradients, states.optimizer)
    return states


def training_probe(step: Step, keys: Keys, config: Keys, shape: Shape, work: Work) -> Probe:
    """The question about a step's heaviest micro-batch."""
    size = micro_batch_of(step, keys)
    share = max(1, keys["global_batch_size"] // step.launch.num_processes)
    is_zero = step.launch.profile.startswith("zero")
    precision = "autocast" if is_mixed(keys) else "float32"
    if (is_zero and is_mixed(keys)) or is_half(keys):
        precision = "bfloat16"
    return {
        "stage": step.stage if step.stage != "rl" else "sft",
        "keys": dict(step.keys),
        "config": dict(config),
        "layers": shape.layers,
        "micro_batch": heaviest_micro_batch(work.samples, size=size, batches=round(work.updates * share / size) or 1),
        "accumulates": step.launch.divides_states or share > size,
        "precision": precision,
    }  # pyright: ignore[reportReturnType]


def training_memory(
    step: Step,
    keys: Keys,
    config: Keys,
    shape: Shape,
    work: Work,
    *,
    parameters: int,
    probe: ProbeMemory | None,
    scorers: Sequence[SizedModel] = (),
) -> Memory:
    """The memory of a training step. Without `probe`, or rows, it is that of the model states and scorers only."""
    model = trained_model(step, keys, shape, parameters)
    states = states_of(step, keys, model)
    activations = logits = 0.0
    is_probed = False
    if probe is not None and work.samples:
        found = probe(training_probe(step, keys, config, shape, work))
        is_probed = not found["problem"]
        logits, activations = found["logits"], found["activations"] - found["logits"]
        if is_probed and step.launch.profile == "single":
            # One process without ZeRO is what the probe measures. At its peak some gradients may not exist yet.
            activations = min(activations, max(0.0, found["peak"] - states.weights - states.optimizer - logits))
            gradients = max(0.0, found["peak"] - states.weights - states.optimizer - logits - activations)
            states = ModelStates(states.weights, gradients, states.optimizer)
    scoring = sum(scorer.parameters * scorer.width for scorer in scorers)  # in rl: kept whole by each process
    return Memory(
        weights=states.weights + states.gathered + scoring,
        gradients=states.gradients,
        optimizer=states.optimizer,
        reference=_reference(step, keys, model, is_divided=states.gathered > 0),
        activations=activations,
        logits=logits,
        host=host_memory(step, model, keys) + states.host,
        is_probed=is_probed,
    )


def _reference(step: Step, keys: Keys, model: TrainedModel, *, is_divided: bool) -> float:
    """Bytes of a reference that stays in memory; `is_divided`: each process holds its share."""
    is_of_rl = step.stage == "rl" and ("reference_model" in step.inputs or not keys.get("use_peft"))
    if not is_of_rl and not keys.get("sync_ref_model"):
        return 0.0
    is_zero = step.launch.profile.startswith("zero")
    width = 2 if is_half(keys) or (is_mixed(keys) and (is_zero or not is_of_rl)) else 4
    return model.parameters * width / (step.launch.num_processes if is_divided else 1)


def host_memory(step: Step, model: TrainedModel, keys: Keys) -> float:
    """Bytes on each machine: its processes, and the model that each of them loads; under ZeRO-3 they share one."""
    processes = max(1, step.launch.num_processes // step.launch.num_machines)
    if step.launch.device == "cpu":
        return processes * PROCESS
    width = 2 if is_half(keys) else 4
    loaded = model.quantised * model.quantised_bits / 8 + (model.parameters - model.quantised) * width
    copies = 1 if step.launch.profile.startswith("zero3") else processes
    return processes * GPU_PROCESS + copies * loaded


def generation_memory(
    step: Step,
    keys: Keys,
    shape: Shape,
    work: Work,
    *,
    parameters: int,
    saved_width: int,
    scorers: Sequence[SizedModel] = (),
) -> Memory:
    """The memory of a stage that samples answers: weights, and the cache of a batch of complete answers.

    Policies are sampled from in turn, and are freed before models score, also in turn: the heaviest counts.
    `saved_width` is that of `dtype: auto`, in bytes.
    """
    width = _width(keys, saved_width)
    batch = keys["generation_batch_size"]
    context = work.mean_context + work.new_tokens / max(1, work.answers) / 2
    sampling = Memory(
        weights=_loaded(step, shape, parameters, width),
        logits=batch * shape.vocabulary * 4 * LOGITS_COPIES,
        kv_cache=shape.cache(batch * context, width=width),
        host=_host_of_loaded(step, parameters * width),
        is_probed=True,
    )
    phases = [sampling]
    for scorer in scorers:
        width = _width(keys, scorer.width)
        weights = _loaded(step, scorer.shape, scorer.parameters, width)
        phases.append(Memory(weights=weights, host=_host_of_loaded(step, scorer.parameters * width), is_probed=True))
    host = max(phase.host for phase in phases)
    return replace(max(phases, key=lambda phase: phase.device), host=host)


def _width(keys: Keys, saved_width: int) -> int:
    """Bytes of a weight of a model that is loaded to sample or to score."""
    return 2 if keys["dtype"] in ("bfloat16", "float16") or (keys["dtype"] == "auto" and saved_width == 2) else 4


def _loaded(step: Step, shape: Shape, parameters: int, width: int) -> float:
    """Bytes of weights on a device; under ZeRO-3 a share, and two gathered layers."""
    if step.launch.profile != "zero3":
        return parameters * width
    return parameters * width / step.launch.num_processes + 2 * shape.largest_layer * width


def _host_of_loaded(step: Step, size: float) -> float:
    """Bytes on each machine of the processes that load a model of `size` bytes."""
    processes = max(1, step.launch.num_processes // step.launch.num_machines)
    return processes * (PROCESS if step.launch.device == "cpu" else GPU_PROCESS + size)


def memory_of(
    step: Step,
    config: Keys,
    shape: Shape,
    work: Work,
    *,
    parameters: int,
    saved_width: int,
    scorers: Sequence[SizedModel] = (),
    probe: ProbeMemory | None,
) -> Memory | None:
    """The memory of a step; None for a stage that holds no model, or only copies weights on the host."""
    keys = with_defaults(step.stage, step.keys)
    if step.stage in ("pretrain", "sft", "reward_model", "dpo", "rl"):
        return training_memory(step, keys, config, shape, work, parameters=parameters, probe=probe, scorers=scorers)
    if step.stage in GENERATING:
        return generation_memory(
            step, keys, shape, work, parameters=parameters, saved_width=saved_width, scorers=scorers
        )
    return None


def needed(memory: Memory, step: Step, device: Device) -> float:
    """Bytes that the step needs of what `device.usable` counts: of one GPU, or of the machine whose CPU computes."""
    if not device.is_cpu:
        return memory.device + _vllm_share(step) * device.memory
    return memory.device * max(1, step.launch.num_processes // step.launch.num_machines) + memory.host


def _vllm_share(step: Step) -> float:
    """The share of a GPU that the vLLM beside a training reserves."""
    if step.stage != "rl" or step.keys.get("engine") != "vllm":
        return 0.0
    return (step.keys.get("vllm") or {}).get("gpu_memory_utilization", SHARE_BESIDE_TRAINING)


def micro_batch_tokens(probe: Probe) -> int:
    return sum(map(tokens_of, probe["micro_batch"]))
