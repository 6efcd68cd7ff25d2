"""What the speed benchmark runs: pieces of work, model sizes and settings."""

from dataclasses import dataclass

VLLM = "sampling-vllm"


@dataclass(frozen=True)
class Work:
    """What two or more sides do: ours comes first."""

    name: str
    rows: str  # file of the sample
    sides: tuple[str, ...]


WORKS = (
    Work("dpo", "pairs", ("dpo-ours", "dpo-trl")),
    Work("dpo_grouped", "grouped", ("dpo-ours", "dpo-trl-grouped")),
    Work("reward", "pairs", ("reward-ours", "reward-trl")),
    Work("sft", "dialogs", ("sft-ours", "sft-trl", "sft-trl-packed")),
    Work("sampling", "prompts", ("sampling-ours", "sampling-generate", VLLM)),
)


SIZES = {  # of the grid: hidden, MLP, layers, heads, key and value heads
    "15M": (256, 688, 4, 4, 2),
    "60M": (512, 1376, 12, 8, 4),
    "135M": (576, 1536, 30, 9, 3),
}


LENGTHS, BATCHES = (128, 256, 512), (2, 4, 8)


@dataclass(frozen=True)
class Settings:
    """All that a measurement hangs on besides content."""

    num_pairs: int = 3  # of neighbours: two runs a side
    steps: int = 1
    batch: int = 8
    prompts: int = 64
    answers: int = 8
    max_new_tokens: int = 128
    written_together: int = 256  # answers, by us, which is vLLM's own default too; generate() 64
    temperature: float = 1.0
    square: int = 2048  # of the matrix product whose rate is the machine's peak
    repeats: int = 7
    first_steps: int = 2  # of ours, not timed beside that peak: memory has its cost when it is touched first
    timed_steps: int = 3
    least_words: int = 2048  # of a sequence of each pair of a cell of the grid, together: more steps of small batches


QUICK = Settings(
    num_pairs=1,
    prompts=4,
    answers=2,
    max_new_tokens=16,
    square=256,
    repeats=2,
    first_steps=0,
    timed_steps=1,
    least_words=1,
)


def cell(size: str, length: int, batch: int) -> str:
    return f"{size} {length} {batch}"
