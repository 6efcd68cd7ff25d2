"""Grids and mixes of `alignloop scale --run` that cannot be fitted or run: refused before any run starts."""

from collections.abc import Sequence

from tests.bad_inputs.cases import Call, Case, Place

GRID = ("--flops=1e11", "--flops=2e11", "--width=32", "--width=64", "--width=96", "--width=128")


SMALL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PRETRAINING = {"architecture": SMALL, "max_steps": 9, "block_size": 16, "vocab_size": 300}


def scale(*words: str, settings: tuple[str, ...] = ()):
    """`alignloop scale --run` on the demo with keys set."""
    return lambda place: place.alignloop(
        "scale", "--run", "demo", *words, *(f"--set={setting}" for setting in settings)
    )


def mix_of(files: Sequence[str], *words: str):
    """Mixes of files of documents, of which a.txt and b.txt exist."""

    def make(place: Place) -> Call:
        for name in ("a.txt", "b.txt"):
            place.write(name, "A text.")
        recipe = {"name": "mix", "stages": ["pretrain"], "data": {"documents": list(files)}, "pretrain": PRETRAINING}
        place.write("mix.yaml", recipe)
        return place.alignloop("scale", "--run", "mix.yaml", *words)

    return make


def on_a_base_model(place: Place) -> Call:
    place.write(
        "mix.yaml", {"name": "mix", "stages": ["pretrain"], "data": {"documents": "a.txt"}, "base_model": "org/m"}
    )
    place.write("a.txt", "A text.")
    return place.alignloop("scale", "--run", "mix.yaml", *GRID)


CASES = [
    Case("scale with one width", scale("--flops=1e9", "--flops=2e9", "--width=8"), "--width: 1 given, expected"),
    Case(
        "scale with one budget",
        scale("--flops=1e9", "--width=8", "--width=16", "--width=24"),
        "--flops and --width: 1 budgets x 3 widths are 3 runs, expected two budgets",
    ),
    Case("scale with a budget of nothing", scale(*GRID, "--budget=0"), "--budget 0.0: expected FLOPs, a number above"),
    Case(
        "scale with too few steps",
        scale("--flops=1e6", *GRID),
        "--flops 1e+06 --width 32: 0 steps of 2048 tokens, expected",
    ),
    Case(
        "scale on a base model",
        on_a_base_model,
        "base_model is trained further; small",
    ),
    Case(
        "scale without an architecture",
        scale(*GRID, settings=("pretrain.architecture=null",)),
        "pretrain.architecture is missing; small runs begin with random weights",
    ),
    Case(
        "scale with steps of warm-up and no end",
        scale(
            *GRID,
            settings=(
                "pretrain.max_steps=-1",
                "pretrain.global_batch_size=16",
                "pretrain.per_device_train_batch_size=16",
            ),
        ),
        "pretrain.warmup_steps=30: expected a share of the steps, as 0.03, or also max_steps",
    ),
    Case(
        "scale with a width between heads",
        scale(*GRID, "--width=40"),
        "--width 40 is no multiple of 32, the size of an attention head in",
    ),
    Case(
        "scale with key heads that do not divide",
        scale(*GRID, settings=("pretrain.architecture.num_key_value_heads=2",)),
        "--width 32 has 1 attention heads, which cannot share key heads as",
    ),
    Case(
        "scale of no decoder",
        scale(*GRID, settings=("pretrain.architecture={model_type: llama}",)),
        "pretrain.architecture has no sizes of a decoder; expected hidden_size",
    ),
    Case(
        "scale with a tokenizer of the hub",
        scale(*GRID, settings=("pretrain.tokenizer_name_or_path=org/name",)),
        "pretrain.tokenizer_name_or_path='org/name': expected a folder with a tokenizer.json",
    ),
    Case(
        "scale of mixes without files", scale("--mixes=9"), "data.documents: 0 files, expected two or more, which are"
    ),
    Case(
        "scale of mixes without an end",
        scale("--mixes=9", settings=("pretrain.max_steps=-1",)),
        "pretrain.max_steps is missing; all mixes are trained on as many tokens",
    ),
    Case(
        "scale of too few mixes",
        mix_of(["a.txt", "b.txt"], "--mixes=2"),
        "--mixes 2: expected 3 or more for 2 files of documents",
    ),
    Case(
        "scale of mixes of the hub",
        mix_of(["a.txt", "org/name@main"], "--mixes=9"),
        "data.documents: org/name is not on this machine, so its size is not known",
    ),
    Case(
        "scale of mixes with one file twice",
        mix_of(["a.txt", "a.txt"], "--mixes=9"),
        "data.documents: expected files with different names, none of them empty",
    ),
]
