"""What the speed benchmark runs: workloads, model sizes and settings."""

from dataclasses import dataclass

VLLM = "sampling-vllm"


@dataclass(frozen=True)
class Workload:
    """A task that two or more sides are measured on. Our side is the first."""

    name: str
    rows: str  # name of the sample's file, without its suffix
    sides: tuple[str, ...]


WORKLOADS = (
    Workload("dpo", "pairs", ("dpo-ours", "dpo-trl")),
    Workload("dpo_grouped", "grouped", ("dpo-ours", "dpo-trl-grouped")),
    Workload("reward", "pairs", ("reward-ours", "reward-trl")),
    Workload("sft", "dialogs", ("sft-ours", "sft-trl", "sft-trl-packed")),
    Workload("sampling", "prompts", ("sampling-ours", "sampling-generate", VLLM)),
)


SIZES = {  # of the grid: hidden size, MLP size, layers, heads, key and value heads
    "15M": (256, 688, 4, 4, 2),
    "60M": (512, 1376, 12, 8, 4),
    "135M": (576, 1536, 30, 9, 3),
}


LENGTHS, BATCHES = (128, 256, 512), (2, 4, 8)


@dataclass(frozen=True)
class Settings:
    """Everything besides the model, the rows and the code that a measurement depends on."""

    num_pairs: int = 3  # pairs of neighbouring runs: two runs a side give three
    steps: int = 1
    batch: int = 8
    prompts: int = 64
    answers: int = 8
    max_new_tokens: int = 128
    generation_batch_size: int = 256  # answers at a time on our side, as vLLM's default; generate() has 64
    temperature: float = 1.0
    square: int = 2048  # size of the square matrix product among those whose best rate is the machine's peak
    repeats: int = 7
    untimed_steps: int = 2  # our first steps, left out of the arithmetic: memory costs more when it is first touched
    timed_steps: int = 3
    min_words: int = 2048  # that a cell of the grid sees in one sequence of each pair: small batches run more steps


QUICK = Settings(
    num_pairs=1,
    prompts=4,
    answers=2,
    max_new_tokens=16,
    square=256,
    repeats=2,
    untimed_steps=0,
    timed_steps=1,
    min_words=1,
)


def cell(size: str, length: int, batch: int) -> str:
    """The name of a cell of the grid."""
    return f"{size} {length} {batch}"
