"""The runs of a grid and of data mixes: sizes, budgets, rates and shares worked out by hand."""

import json
import signal
import subprocess
import time
from itertools import islice

import pytest
import yaml

from commands.mixture import mixes_of
from commands.scaling_runs import LEAST_RUNS, read_table, runs_of
from data_schemas.errors import ConfigError, DataError
from pipeline.launch.loading import load_checked
from pipeline.scaling import grid
from pipeline.scaling.grid import plan_grid
from pipeline.scaling.mixes import draw_mixes, plan_mixes
from pipeline.scaling.sizes import at_width
from pipeline.scaling.tables import write_grid, write_mixes
from pipeline.steps import File, Output
from tests.loop_recipes import COMMAND
from tests.patience import PATIENCE

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
PRETRAIN = {
    "architecture": ARCHITECTURE,
    "vocab_size": 300,
    "block_size": 8,
    "global_batch_size": 4,
    "learning_rate": 0.01,
    "max_steps": 40,
    "warmup_steps": 4,
    "validation_share": 0.1,
}
WORDS = {"birds": "the bird sings a song", "fish": "a fish swims in the sea", "stones": "stones lie on the ground"}


@pytest.fixture
def recipe(tmp_path):
    """A function that writes the recipe of small runs, with changed keys of `pretrain`, and loads it."""

    def write(**changed: object):
        for name, text in WORDS.items():
            lines = [f"{text} number {number}" for number in range(200 if name == "birds" else 100)]
            (tmp_path / f"{name}.txt").write_text("\n\n".join(lines))
        content = {
            "name": "small",
            "output_dir": str(tmp_path / "runs"),
            "stages": ["pretrain"],
            "launch": {"device": "cpu"},
            "defaults": {"report_to": "none"},
            "data": {"documents": [str(tmp_path / f"{name}.txt") for name in WORDS], "validation_share": 0.1},
            "pretrain": PRETRAIN | changed,
        }
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
        return load_checked(tmp_path / "small.yaml", [])[0]

    return write


def test_a_narrower_model_has_the_same_head_size_and_proportions():
    size = at_width(ARCHITECTURE, 16, vocabulary=300, where="architecture")
    assert size.architecture == ARCHITECTURE | {
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    matrices = 4 * 16 * 16 + 3 * 16 * 48  # of the layer
    assert size.parameters == matrices + 300 * 16 + 3 * 16  # three norms
    attention = 4 * 16 * 4.5  # a token of a block of 8 attends to 4.5 in the mean
    assert size.flops_per_token(8) == 3 * (2 * matrices + 2 * 300 * 16 + attention)


def test_an_embedding_that_is_not_the_head_is_not_counted():
    untied = ARCHITECTURE | {"tie_word_embeddings": False}
    sizes = [at_width(given, 32, vocabulary=300, where="").parameters for given in (ARCHITECTURE, untied)]
    assert sizes[0] == sizes[1]


def test_each_budget_is_spent_within_half_a_step(recipe):
    planned = plan_grid(recipe(), [2e9, 5e8, 1e9], [16, 32, 48])
    assert [run.step for run in planned.runs[:4]] == [
        "pretrain.5e08-16",
        "pretrain.5e08-32",
        "pretrain.5e08-48",
        "pretrain.1e09-16",
    ]
    assert planned.runs[0].num_steps == 315  # 5e8 / (49,632 FLOPs a token x 32 tokens a step)
    for run in planned.runs:
        flops = float(run.step.split(".")[1].split("-")[0])
        assert abs(run.num_tokens * run.size.flops_per_token(8) - flops) <= 16 * run.size.flops_per_token(8)
    assert (planned.recipe.name, planned.steps[0].name) == ("small-scale", "prepare_data")
    keys = planned.steps[1].keys
    assert (keys["max_steps"], keys["eval_steps"], keys["keep"], keys["warmup_steps"]) == (315, 315, "last", 0.1)


@pytest.mark.parametrize(("muon", "rates"), [(None, [0.02, 0.01, 0.01 * 32 / 48]), (0.02, [0.01, 0.01, 0.01])])
def test_the_learning_rate_is_the_recipes_at_its_width(recipe, muon, rates):
    planned = plan_grid(recipe(muon_learning_rate=muon), [5e8, 1e9, 2e9], [16, 32, 48])
    assert [run.learning_rate for run in planned.runs[:3]] == pytest.approx(rates)
    assert planned.steps[1].keys["learning_rate"] == pytest.approx(rates[0])
    assert planned.steps[1].keys.get("muon_learning_rate") == muon


@pytest.mark.parametrize(
    ("changed", "budgets", "widths", "message"),
    [
        ({}, [1e8] * 9, [16, 32, 48], "1 budgets x 3 widths are 3 runs, expected two budgets and 8 runs or more"),
        ({}, [1e8, 2e8], [16, 32], "--width: 2 given, expected 3 or more"),
        ({}, [5e8, 1e9, 2e9], [16, 32, 40], "--width 40 is no multiple of 16, the size of an attention head"),
        ({}, [1e6, 1e9, 2e9], [16, 32, 48], "--flops 1e+06 --width 16: 1 steps of 32 tokens, expected 20 or more"),
        ({"max_steps": -1}, [5e8, 1e9, 2e9], [16, 32, 48], "warmup_steps=4: expected a share of the steps"),
    ],
)
def test_a_grid_that_cannot_be_fitted_is_refused_before_anything_runs(recipe, changed, budgets, widths, message):
    with pytest.raises(ConfigError) as error:
        plan_grid(recipe(**changed), budgets, widths)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_shared_key_heads_need_a_multiple():
    shared = ARCHITECTURE | {"num_attention_heads": 4, "num_key_value_heads": 2}
    assert at_width(shared, 16, vocabulary=300, where="").shape.key_heads == 1
    with pytest.raises(ConfigError, match=r"--width 24 has 3 attention heads.*use a multiple of 16"):
        at_width(shared, 24, vocabulary=300, where="architecture")


def test_as_few_runs_are_refused_as_the_fit_refuses():
    assert grid.LEAST_RUNS == LEAST_RUNS


def test_mixes_are_around_the_natural_one_and_the_first_ones_stay():
    natural = {"a": 0.5, "b": 0.3, "c": 0.2}
    many = list(islice(draw_mixes(natural, 0), 4000))
    for name, share in natural.items():
        assert sum(mix[name] for mix in many) / len(many) == pytest.approx(share, abs=0.02)
    assert all(sum(mix.values()) == pytest.approx(1) and min(mix.values()) >= 0 for mix in many)
    assert list(islice(draw_mixes(natural, 0), 3)) == many[:3]
    assert list(islice(draw_mixes(natural, 1), 3)) != many[:3]


def test_each_mix_is_curated_and_trained_with_one_tokenizer(recipe, tmp_path):
    (tmp_path / "target.txt").write_text("a fish swims")
    planned = plan_mixes(recipe(), 4, str(tmp_path / "target.txt"))
    steps = {step.name: step for step in planned.steps}
    assert [name.partition(".")[2] for name in steps if name.startswith("pretrain")] == [f"mix-{n}" for n in range(5)]
    natural = planned.runs[0].shares
    sizes = {f"{name}.txt": (tmp_path / f"{name}.txt").stat().st_size for name in WORDS}
    assert natural == {name: size / sum(sizes.values()) for name, size in sizes.items()}
    assert natural["birds.txt"] > natural["stones.txt"]
    assert steps["prepare_data"].keys["keep_sources"] is True
    assert steps["curate.mix-3"].keys["mix_weights"] == planned.runs[3].shares
    assert "tokenizer_name_or_path" not in steps["pretrain.mix-0"].inputs
    for number in range(1, 5):
        inputs = steps[f"pretrain.mix-{number}"].inputs
        assert inputs["tokenizer_name_or_path"] == [Output("pretrain.mix-0", "model")]
        assert inputs["train_data"] == [Output(f"curate.mix-{number}", "documents.train")]
        assert inputs["eval_data"] == [File(str(tmp_path / "target.txt"))]


def test_too_few_mixes_and_a_schedule_without_an_end_are_refused(recipe):
    with pytest.raises(ConfigError, match=r"--mixes 3: expected 4 or more for 3 files of documents"):
        plan_mixes(recipe(), 3, None)
    with pytest.raises(ConfigError, match=r"pretrain\.max_steps is missing"):
        plan_mixes(recipe(max_steps=-1), 6, None)


def test_the_tables_are_those_that_the_fits_read(recipe, tmp_path):
    planned = plan_grid(recipe(), [5e8, 1e9, 2e9], [16, 32, 48])
    entries = []
    for number, run in enumerate(planned.runs):
        model = tmp_path / "run" / run.step / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(run.size.architecture | {"vocab_size": 290}))
        entries.append({"name": run.step, "folder": run.step, "metrics": {"eval_loss": 3.0 + number}})
    path = write_grid({"steps": entries}, tmp_path / "run", planned.runs, block_size=8)  # pyright: ignore
    runs = runs_of(path, read_table(path))
    assert len(runs.budgets()) == 3 and list(runs.loss_R) == [3.0 + number for number in range(9)]
    assert runs.parameters_R[0] == 3328 + 290 * 16 + 48  # the vocabulary is that of the trained model
    mixed = plan_mixes(recipe(), 5, None)
    entries = [{"name": run.step, "metrics": {"eval_loss": 2.5}} for run in mixed.runs]
    path = write_mixes({"steps": entries}, tmp_path / "run", mixed.runs)  # pyright: ignore
    assert mixes_of(path, read_table(path)).names == ["birds.txt", "fish.txt", "stones.txt"]


def test_a_run_without_its_loss_or_its_sizes_is_named(recipe, tmp_path):
    planned = plan_grid(recipe(), [5e8, 1e9, 2e9], [16, 32, 48])
    first = planned.runs[0].step
    model = tmp_path / first / "model"
    model.mkdir(parents=True)
    entries = [{"name": run.step, "folder": run.step, "metrics": {}} for run in planned.runs]
    with pytest.raises(DataError, match=r"has no config\.json with the sizes of a decoder"):
        write_grid({"steps": entries}, tmp_path, planned.runs, block_size=8)  # pyright: ignore
    (model / "config.json").write_text(json.dumps(planned.runs[0].size.architecture | {"vocab_size": 290}))
    with pytest.raises(DataError, match="has no eval_loss in its record"):
        write_grid({"steps": entries}, tmp_path, planned.runs, block_size=8)  # pyright: ignore
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.long
def test_a_killed_grid_goes_on_when_it_is_typed_again(recipe, tmp_path):
    recipe()
    words = ["scale", "--run", "small.yaml", "--flops", "5e8", "--flops", "1e9", "--flops", "2e9"]
    words += ["--width", "16", "--width", "32", "--width", "48", "-o", "laws.json"]
    process = subprocess.Popen([COMMAND, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.glob("runs/small-scale/pretrain.5e08-16-*/artifact.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and b"to resume: " in errors and b"scale --run small.yaml" in errors
    assert not (tmp_path / "runs/small-scale/runs.csv").exists()
    done = subprocess.run(
        [COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs/small-scale/summary.json").read_text())
    states = {step["name"]: step["state"] for step in summary["steps"]}
    assert states["prepare_data"] == states["pretrain.5e08-16"] == "reused" and states["pretrain.2e09-48"] == "ran"
    assert "9 runs of 3 budgets" in done.stdout and (tmp_path / "laws.json").exists()
