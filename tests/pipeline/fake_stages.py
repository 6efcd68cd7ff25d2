"""A source tree with toy stages for the tests of the pipeline. Each writes its outputs and record in milliseconds."""

import textwrap
from pathlib import Path

from data_schemas.stage_keys import stages

# The toy stage. TOY (a JSON object in the environment) makes steps misbehave: {"round-1.dpo": "fail"}.
# SCORES has the score of a policy by step; without an entry it is the policy's round.
STAGE = """
import fcntl, json, os, signal, subprocess, sys, time
from pathlib import Path
import yaml
from data_schemas.artifact import Artifact, Choice, files_below

stage = Path(__file__).stem
config = yaml.safe_load(Path(sys.argv[2]).read_text())
folder, step = Path(config["output_dir"]), config["step"]
lock = (folder / ".lock").open("a+")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
lock.truncate(0); lock.write(str(os.getpid())); lock.flush()
with (folder.parent / "launched.txt").open("a") as file:
    file.write(step + chr(10))
print("hello from", step, flush=True)
here = {"cores": sorted(os.sched_getaffinity(0)), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": os.environ["OMP_NUM_THREADS"], "began": time.time()}
behaviour = json.loads(os.environ.get("TOY", "{}")).get(step, "")
if behaviour == "fail":
    print("RuntimeError: torch.OutOfMemoryError: no memory", flush=True)
    sys.exit(1)
if behaviour == "traceback":
    1 / 0
if behaviour == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour in ("halve", "halve and fail", "halve for ever"):
    note, keep = folder / "checkpoints" / "memory.json", behaviour == "halve for ever"
    if keep or not note.exists():
        note.parent.mkdir(exist_ok=True)
        note.write_text("{}")
        (folder / "outcome.json").write_text(json.dumps({"state": "interrupted", "cause": "8 rows are too much: 4 now",
                                                         "hint": "run me again", "kind": "halved"}))
        sys.exit(1)
    if behaviour == "halve and fail":
        sys.exit(1)
if behaviour == "wait" and not list(folder.glob("people/*.jsonl")):
    from data_schemas.people import Batch, Shown
    (folder / "people").mkdir(exist_ok=True)
    shown = {"ana": [Shown(row="r1", first="one"), Shown(row="r2", first="other")], "ben": [Shown(row="r1", first="one")]}
    Batch(run=config["run_group"], step=step, batch="0123", people=shown).write(folder / "people")
    (folder / "outcome.json").write_text(json.dumps({"state": "waiting", "cause": "waiting for people", "hint": "",
                                                     "kind": "waiting"}))
    sys.exit(3)
if behaviour == "config":
    (folder / "outcome.json").write_text(json.dumps({"state": "failed", "cause": "beta=9 is too much", "hint": "try 1",
                                                     "kind": "config"}))
    sys.exit(1)
if behaviour == "checkpoint":
    (folder / "checkpoints" / "checkpoint-50").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-50" / "whole.json").write_text("{}")
    sys.exit(1)
if behaviour.startswith("meet "):  # wait until another step runs at the same time
    (folder / "here").touch()
    deadline = time.monotonic() + 120
    while not list(folder.parent.glob(behaviour.removeprefix("meet ") + "-????????/here")):
        if time.monotonic() > deadline:
            sys.exit("nobody came")
        time.sleep(0.02)
    time.sleep(0.3)
def hang():
    # A child in a separate session, as torch's launcher starts its ranks.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with (folder.parent / "hanging.txt").open("a") as file:
        file.write(f"{os.getpid()} {child.pid} ")
    time.sleep(600)
if behaviour == "checkpoint on SIGTERM" and not (folder / "checkpoints").exists():
    def save(*_):
        (folder / "checkpoints" / "checkpoint-50").mkdir(parents=True)
        (folder / "checkpoints" / "checkpoint-50" / "whole.json").write_text("{}")
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    hang()
if behaviour in ("hang", "stubborn"):
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()
(folder / "here.json").write_text(json.dumps(here))
outputs = {
    "prepare_data": ["documents.train", "instructions.train", "instructions.validation", "preferences.train",
                     "preferences.judge", "prompts.train", "evaluation_prompts"],
    "annotate": ["pairs.train", "pairs.validation"],
    "rejection_sampling": ["winners.train"],
    "evaluate_policy": ["answers"],
}.get(stage, ["model"])
if behaviour == "empty":
    outputs = outputs[2:]
made = {}
for name in outputs:
    made[name] = name if name == "model" else name + ".jsonl"
    if name == "model":
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "config.json").write_text("{}")
    else:
        (folder / made[name]).write_text("{}")
metrics, choices = {"eval_loss": 1.25 if stage == "average_models" else 1.5}, []
if stage == "evaluate_policy":
    given = json.loads(os.environ.get("SCORES", "{}"))
    steps = [json.loads((Path(p) / "toy.json").read_text()) for p in config.get("previous", [])] + [config["policy_step"]]
    (folder / "toy.json").write_text(json.dumps(config["policy_step"]))
    rounds = {name: float(name[6:].split(".")[0]) if name.startswith("round-") else 0.0 for name in steps}
    scores = rounds | {name: score for name, score in given.items() if name in steps}
    steps.sort(key=lambda name: -scores[name])
    choices = [Choice(step=name, folder="", score=scores[name]) for name in steps]
    gates = json.loads(os.environ.get("GATES", "{}"))
    metrics = {"judge": "gold", "judge_mean": scores[config["policy_step"]], "gold_mean": scores[config["policy_step"]],
               "gate": gates.get(step, "accept"), "gate_reason": "KL 25.000 > 20" if step in gates else "gain 1.000 > 0"}
(folder / "metrics.jsonl").write_text(json.dumps({"step": 0} | {"eval_loss": metrics.get("eval_loss", 1.5)}))
Artifact(stage=stage, step=step, recipe_version=1, fingerprint=config["fingerprint"], keys={}, inputs={}, outputs=made,
         files=files_below(folder, made), metrics=metrics, choices=choices, seconds=0.5).write(folder)
if behaviour == "hang at the end":
    hang()
"""  # noqa: E501
RECIPE = """
name: toy
rounds: 2
base_model: base
launch: {device: cpu, grace_seconds: 0.5}
data: {preferences: pairs.jsonl, instructions: chats.jsonl}
annotate: {annotator_function: "scores:score"}
evaluate_policy: {judge_function: "scores:score"}
defaults: {report_to: none}
"""


def build_house(root: Path) -> Path:
    """Writes toy stages into `root`, and `root/alignloop.py`, the command that runs them. Returns the command."""
    (root / "stages").mkdir(parents=True)
    for stage in stages():
        (root / "stages" / f"{stage}.py").write_text(STAGE)
    command = root / "alignloop.py"
    command.write_text(
        textwrap.dedent(f"""
        import os
        from pathlib import Path
        from data_schemas.stage_keys import stages
        from pipeline import cli
        from pipeline.launch import command_line, processes, warm
        warm.preloaded_modules = lambda: []
        command_line.ROOT = Path({str(root)!r})
        processes.LEFTOVER_SECONDS = float(os.environ.get("GRACE", "10"))
        cli.main()
        """)
    )
    return command


def build_inputs(folder: Path) -> Path:
    """Writes a recipe and everything that it names into `folder`. Returns the recipe."""
    base = folder / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text('{"model_type": "llama"}')
    (base / "tokenizer.json").write_text("{}")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    (folder / "chats.jsonl").write_text('{"messages": []}')
    (folder / "scores.py").write_text("def score(prompt, answer, ended):\n    return 0.0\n")
    recipe = folder / "toy.yaml"
    recipe.write_text(RECIPE)
    return recipe
