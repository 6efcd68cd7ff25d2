"""Bad runs and options, given to the subcommands that run a recipe or take the folder of a run."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_schemas.files import digest
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.state.run import Run
from tests.bad_inputs.cases import Call, Case, Place

STATUS, CHAT, VERIFY = ("status", "runs/toy"), ("chat", "runs/toy"), ("verify", "runs/toy")


def run_in_use(place: Place) -> Call:
    words = place.recipe()
    held = place.write("runs/toy/.lock", "4711 here\n").open("r+")
    fcntl.flock(held, fcntl.LOCK_EX)
    call = place.alignloop("run", *words)

    def locked() -> int:
        with held:
            return call()

    return locked


def step_in_use(place: Place) -> Call:
    """A step that the last run did not need, with a stage running in its folder."""
    identity = {"stage": "sft"}
    folder = f"runs/toy/round-0.sft-{digest(identity)[:8]}"
    place.write("runs/toy/summary.json", SUMMARY | {"state": "done"})
    place.write(f"{folder}/fingerprint.json", identity)
    held = place.write(f"{folder}/.lock", "").open("r+")
    fcntl.flock(held, fcntl.LOCK_EX)
    call = place.alignloop("prune", "runs/toy", "--yes")

    def locked() -> int:
        with held:
            return call()

    return locked


def run_folder_is_a_file(place: Place) -> Call:
    place.write("runs", "a file")
    return place.alignloop("run", *place.recipe())


def toy_run(*settings: str, **environment: str) -> Callable[[Place], Call]:
    """A run of toy stages, one of which fails."""

    def make(place: Place) -> Call:
        place.toy_stages(**environment)
        return place.alignloop("run", *place.recipe("rounds=0", *settings))

    return make


def toy_check(**environment: str) -> Callable[[Place], Call]:
    """`alignloop check` of toy stages, of which prepare_data goes wrong."""

    def make(place: Place) -> Call:
        place.toy_stages(**environment)
        return place.alignloop("check", *place.recipe())

    return make


def init_twice(place: Place) -> Call:
    place.write("my-run.yaml", "name: mine\n")
    return place.alignloop("init")


def lost_record(place: Place) -> Call:
    """The last step but one deletes the record of the first step."""
    place.toy_stages()
    stage = place.folder / "house" / "stages" / "prepare_base.py"
    stage.write_text(
        stage.read_text() + "\nfor path in folder.parent.glob('prepare_data-*/artifact.json'): path.unlink()"
    )
    return place.alignloop("run", *place.recipe("rounds=0"))


def few_rows(number: int, *settings: str, held_out: str = "") -> Callable[[Place], Call]:
    """prepare_data leaves so many rows for SFT."""

    def make(place: Place) -> Call:
        place.toy_stages()
        stage = place.folder / "house" / "stages" / "prepare_data.py"
        text = stage.read_text().replace(
            "metrics, choices = {", f'metrics, choices = {{"instructions.train": {number}, '
        )
        stage.write_text(text.replace('"instructions.validation",', held_out))
        return place.alignloop("run", *place.recipe("rounds=0", *settings))

    return make


def no_choice(place: Place) -> Call:
    """An evaluation that ranks no policy."""
    place.toy_stages()
    stage = place.folder / "house" / "stages" / "evaluate_policy.py"
    stage.write_text(stage.read_text().replace("choices=choices", "choices=[]"))
    return place.alignloop("run", *place.recipe("rounds=1"))


def in_run(name: str, content: Any, *words: str) -> Callable[[Place], Call]:
    """A changed file of a run, given to a subcommand."""

    def make(place: Place) -> Call:
        place.write(f"runs/toy/{name}", content)
        return place.alignloop(*words)

    return make


RECORD = {
    "stage": "sft",
    "step": "round-0.sft",
    "recipe_version": 1,
    "fingerprint": "0" * 64,
    "keys": {},
    "inputs": {},
    "outputs": {},
    "files": {},
    "metrics": {},
    "seconds": 1.0,
}
STEP = {"name": "s", "stage": "sft", "round": 0, "folder": "s-0", "fingerprint": "0", "state": "ran"}
STEP |= {"seconds": 1.0, "metrics": {}}
SUMMARY = {"name": "toy", "state": "failed", "steps": [], "rounds": [], "best_policy": None}


def damaged_step(place: Place) -> Call:
    place.write("runs/toy/sft-00000000/artifact.json", RECORD | {"files": {"model/config.json": 2}})
    return place.alignloop("verify", "runs/toy")


def planned_folder(place: Place, step: str) -> Path:
    """The folder of a step in the plan of the valid recipe."""
    recipe = load_recipe(place.folder / "toy.yaml")
    folder = Run.of(recipe, make_plan(recipe)).folder(step)
    assert folder is not None
    return folder


def planned_beside(name: str, content: Any) -> Callable[[Place], Call]:
    """The folder of a step exists already, with an invalid file."""

    def make(place: Place) -> Call:
        words = place.recipe()
        place.write(f"runs/toy/{planned_folder(place, 'prepare_data').name}/{name}", content)
        return place.alignloop("plan", *words)

    return make


ON_GPUS = ("launch.device=gpu", "launch.wrapper=env")


def too_large(place: Place) -> Call:
    settings = (*ON_GPUS, "launch.gpu=t4", "base_model=meta-llama/Llama-3.1-70B")
    return place.alignloop("run", *place.recipe(*settings))


def plan_without_its_program(place: Place) -> Call:
    place.toy_stages()
    place.patch.setattr("pipeline.planner.questions.PROGRAM", "no_such_module")
    return place.alignloop("plan", *place.recipe(), "--cost")


def submit(
    *settings: str, out: str = "jobs", to: str = "slurm", site: str | None = None, hours: str = "24"
) -> Callable[[Place], Call]:
    words = ("--to", to, "--no-estimate", "--hours", hours, "--out", out, *(("--site", site) if site else ()))
    return lambda place: place.alignloop("submit", *place.recipe(*settings), *words)


CASES = [
    Case(
        "submit with devices of one machine",
        submit("launch.devices=[0]", "defaults.bf16=false"),
        "launch.devices=[0]: the scheduler chooses the devices of each job; leave it out",
    ),
    Case(
        "submit what each machine would decide for itself",
        submit(),
        "sft.bf16 is left open, so the machine that plans a step decides its precision, and the machines of a cluster",
    ),
    Case(
        "submit over something else",
        submit("defaults.bf16=false", out="base"),
        "--out HERE/base exists and was not written by `alignloop submit`; give another folder",
    ),
    Case(
        "submit to Kubernetes without an image",
        submit("defaults.bf16=false", to="k8s"),
        "--site gives no image for the jobs; give a YAML file with spec: {template: {spec: {containers: [{name: step, ",
    ),
    Case(
        "submit to SLURM with a site",
        submit("defaults.bf16=false", site="site.yaml"),
        "--site is not used by --to slurm; give the options of sbatch to submit.sh",
    ),
    Case(
        "submit with a site that is not there",
        submit("defaults.bf16=false", to="skypilot", site="no-site.yaml"),
        "no-site.yaml",
    ),
    Case(
        "submit to SkyPilot a GPU without a name",
        submit("defaults.bf16=false", *ON_GPUS, to="skypilot"),
        "launch.gpu is not set, and SkyPilot needs the name of a GPU; set launch: {gpu: h100}",
    ),
    Case(
        "run on a GPU that nothing is known of",
        lambda place: place.alignloop("run", *place.recipe(*ON_GPUS, "launch.gpu=h1000")),
        "launch.gpu='h1000' is no GPU of the planner's table: b200, h200, h100",
    ),
    Case(
        "plan for a GPU that nothing is known of",
        lambda place: place.alignloop("plan", *place.recipe(), "--gpu", "h1000"),
        "--gpu='h1000' is no GPU of the planner's table: b200, h200, h100",
    ),
    Case("run that cannot fit", too_large, "GiB, and t4 has room for"),
    Case("plan without its program", plan_without_its_program, "commands/estimate.py ended without an answer", 1),
    Case("run in use", run_in_use, "HERE/runs/toy is in use by another process (pid 4711"),
    Case("run folder that is a file", run_folder_is_a_file, "HERE/runs is a file; expected a folder"),
    Case("stage that refuses", toy_run(TOY='{"prepare_base": "config"}'), "prepare_base failed: beta=9 is too much"),
    Case("stage that fails", toy_run(TOY='{"prepare_base": "fail"}'), "prepare_base failed: ended with exit code 1", 1),
    Case(
        "check of data that is refused", toy_check(TOY='{"prepare_data": "config"}'), "prepare_data: beta=9 is too much"
    ),
    Case("check of data that fails", toy_check(TOY='{"prepare_data": "fail"}'), "prepare_data: it did not finish", 1),
    Case("recipe that init would overwrite", init_twice, "my-run.yaml exists already; move it away, or use another"),
    Case(
        "shipped recipe that does not exist",
        lambda place: place.alignloop("init", "lama3_8b"),
        "no shipped recipe has the name 'lama3_8b'; did you mean 'llama3_8b'?; shipped recipes: demo, dpo, llama3_70b",
    ),
    Case(
        "split without rows",
        toy_run(TOY='{"prepare_data": "empty"}'),
        "round-0.sft needs instructions.train, and the data leave it no row (no rows); give more data.instructions, or",
    ),
    Case(
        "single row, of which none can be held out",
        few_rows(1),
        "round-0.sft needs two rows, one of them to hold out, and instructions.train has 1; give more data",
    ),
    Case(
        "rows that fill no batch of two processes",
        few_rows(9, "sft.launch={profile: ddp, num_processes: 2}", held_out='"instructions.validation",'),
        "sft.global_batch_size=32, and round-0.sft has 9 training rows (instructions.train); lower it to 8 or less, or",
    ),
    Case("record that goes away", lost_record, "its record disappeared during the run; run the recipe again"),
    Case("evaluation without a choice", no_choice, "round-0.evaluate_policy ranks 0 policies, too few for number 1;"),
    Case("record that is cut", planned_beside("artifact.json", "{"), "artifact.json is not a record (Expecting"),
    Case("record that is a list", planned_beside("artifact.json", "[]"), "artifact.json is not a record (the file: "),
    Case(
        "record without a stage",
        planned_beside("artifact.json", {"step": "x"}),
        "is not a record (stage: expected a value",
    ),
    Case(
        "record that was changed",
        planned_beside("artifact.json", RECORD | {"digest": "0"}),
        "artifact.json was changed after it was written; put it back as it was, or move the folder away",
    ),
    Case(
        "status of no run",
        lambda place: place.alignloop("status", "."),
        ". has no summary.json; expected the folder of a run",
    ),
    Case(
        "summary that is cut",
        in_run("summary.json", "{", *STATUS),
        "runs/toy/summary.json is not the summary of a run;",
    ),
    Case(
        "summary that is a list", in_run("summary.json", "[]", *STATUS), "runs/toy/summary.json is not the summary of"
    ),
    Case(
        "summary of another program",
        in_run("summary.json", {"name": "x"}, *STATUS),
        "runs/toy/summary.json is not the summary of a run; run the recipe again",
    ),
    Case(
        "summary that nests",
        in_run("summary.json", "[" * 100_000, *STATUS),
        "runs/toy/summary.json is not the summary of a run; run the recipe again",
    ),
    Case(
        "summary with a step that lacks its state",
        in_run("summary.json", SUMMARY | {"steps": [{"name": "s"}]}, *STATUS),
        "is not the summary of a run; run the recipe again to rewrite it (steps.0.stage: expected a value)",
    ),
    Case(
        "summary with a round that is a number",
        in_run("summary.json", SUMMARY | {"rounds": [1]}, *CHAT),
        "is not the summary of a run; run the recipe again to rewrite it (rounds.0: expected a",
    ),
    Case(
        "summary with a round without its number",
        in_run("summary.json", SUMMARY | {"rounds": [{}]}, *STATUS),
        "rounds contains {}, which has no number of a round",
    ),
    Case(
        "summary with a stage that is none",
        in_run("summary.json", SUMMARY | {"steps": [STEP | {"stage": "sleep"}]}, *STATUS),
        "there is no stage 'sleep'",
    ),
    Case(
        "summary with a folder elsewhere",
        in_run("summary.json", SUMMARY | {"best_policy": {"step": "s", "folder": "../../x", "score": 1.0}}, *CHAT),
        "the folder '../../x' is not inside of the run's",
    ),
    Case(
        "verify of no run",
        lambda place: place.alignloop("verify", "."),
        ". contains no step; expected the folder of a run",
    ),
    Case("step that is damaged", damaged_step, "sft-00000000: changed since it was written; move it away", 1),
    Case(
        "step whose record is damaged",
        in_run("sft-0/artifact.json", "{", *VERIFY),
        "sft-0: changed since it was written",
        1,
    ),
    Case(
        "prune after a run that failed",
        in_run("summary.json", SUMMARY, "prune", "runs/toy"),
        "the last run in runs/toy is failed; what it needs is known when it is done: run the recipe that you",
    ),
    Case(
        "prune of a recipe",
        in_run("a.yaml", "", "prune", "runs/toy/a.yaml"),
        "runs/toy/a.yaml has no summary.json; expected the folder of a run",
    ),
    Case("prune of a step in use", step_in_use, " is in use by a stage; wait for it or stop it"),
    Case("chat with nobody", lambda place: place.alignloop("chat", "gone"), "gone does not exist"),
    Case(
        "chat with a run before its evaluation",
        in_run("summary.json", SUMMARY, *CHAT),
        "runs/toy has no finished policy yet",
    ),
    Case(
        "chat with a folder",
        in_run("a.txt", "", *CHAT),
        "runs/toy is not a model, a step or a run: no config.json, no record of",
    ),
    Case("chat with a damaged step", in_run("artifact.json", "{", *CHAT), "runs/toy/artifact.json is not a record"),
    Case("word that is no command", lambda place: place.alignloop("rnu"), "No such command 'rnu'"),
    Case("word that is missing", lambda place: place.alignloop("run"), "Missing argument 'RECIPE'"),
    Case("option that is none", lambda place: place.alignloop("plan", "a.yaml", "--sett", "x"), "No such option:"),
]
