"""Bad input to the commands that take a model: chat, generate and score."""

import importlib
import sys
from collections.abc import Callable

from tests.bad_inputs.bad_templates import model
from tests.bad_inputs.cases import Call, Case, Place

PROMPT = {"prompt": "Hi?"}
FILES = ("model", "in.jsonl", "-o", "out.jsonl", "--max_new_tokens=2")
ANSWERED = {"prompt": "Hi?", "response": "Ho."}


def program(
    name: str, *words: str, rows: object = None, others: dict[str, object] | None = None
) -> Callable[[Place], Call]:
    """A program beside the tiny policy `model`, the reward model `rm`, and in.jsonl with these rows."""

    def make(place: Place) -> Call:
        module = importlib.import_module(f"commands.{name}")
        model(place)
        (place.folder / "rm").symlink_to(place.folder_of("tiny_reward_model"))
        place.write("in.jsonl", [PROMPT] if rows is None else rows)
        for path, content in (others or {}).items():
            place.write(path, content)
        place.patch.setattr(sys, "argv", [name, *words, "--use_cpu"])
        return module.main

    return make


UNFINISHED = {
    "out.jsonl.unfinished/settings.json": {"seed": 1},
    "out.jsonl.unfinished/checkpoints/answers-0-0123/0.json": "",
}
CASES = [
    Case(
        "generate to a file that exists", program("generate", *FILES, others={"out.jsonl": ""}), "exists already; move"
    ),
    Case(
        "generate to no folder", program("generate", "model", "in.jsonl", "-o", "no/o"), "folder no does not exist; cre"
    ),
    Case(
        "generate to a long name", program("generate", "model", "in.jsonl", "-o", "x" * 250), "is too long for a path"
    ),
    Case(
        "generate over other settings", program("generate", *FILES, others=UNFINISHED), "of other settings (seed, MODEL"
    ),
    Case("scale without a table", lambda place: place.alignloop("scale"), "or --run RECIPE to train them"),
    Case(
        "scale with widths and no recipe", lambda place: place.alignloop("scale", "--width", "8"), "--width needs --run"
    ),
    Case(
        "scale with a recipe and no grid",
        lambda place: place.alignloop("scale", "--run", "demo", "--flops", "1e9"),
        "--run needs --flops and --width for a grid of sizes, or --mixes",
    ),
    Case(
        "scale with a budget of mixes",
        lambda place: place.alignloop("scale", "--run", "demo", "--mixes", "9", "--budget", "1e9"),
        "--mixes writes one of data mixes; leave it out",
    ),
    Case(
        "scale with a table and a recipe",
        lambda place: place.alignloop("scale", "runs.csv", "--run", "demo", "--mixes", "9"),
        "--run writes the table itself; leave it out",
    ),
    Case(
        "scale with held-out rows of a grid",
        lambda place: place.alignloop("scale", "--run", "demo", "--flops=1e9", "--width=8", "--held-out=a.txt"),
        "--held-out is for --mixes",
    ),
    Case(
        "compare to a name that no disk takes",
        lambda place: place.alignloop("compare", "a", "b", "--page", "x" * 300),
        "is too long for a path",
    ),
    Case(
        "generate to no name", program("generate", "model", "in.jsonl", "-o", ""), "the output . is a folder; expected"
    ),
    Case(
        "generate to a table",
        program("generate", "model", "in.jsonl", "-o", "out.csv"),
        "the output out.csv is written as JSON lines, and its name ends in .csv; expected .jsonl",
    ),
    Case(
        "generate below a file",
        program("generate", "model", "in.jsonl", "-o", "in.jsonl/out.jsonl"),
        "the output's folder in.jsonl is a file; give another name",
    ),
    Case(
        "an empty option",
        lambda place: place.alignloop("generate", "model", "in.jsonl", "-o", ""),
        "-o is empty; expected a value, or leave it out",
    ),
    Case(
        "an empty option after its sign",
        lambda place: place.alignloop("export", "run", "out", "--license="),
        "--license is empty; expected a value, or leave it out",
    ),
    Case("an empty argument", lambda place: place.alignloop("status", " "), "an argument is empty; expected a value"),
    Case(
        "generate by a file",
        lambda place: place.alignloop("generate", place.write("page.html", "x"), "in.jsonl", "-o", "out.jsonl"),
        "page.html is not a model, a step or a run",
    ),
    Case(
        "list of a file",
        lambda place: place.alignloop("list", place.write("page.html", "x")),
        "page.html is a file; expected the folder that the runs are in",
    ),
    Case(
        "list of nothing",
        lambda place: place.alignloop("list", "gone"),
        "gone does not exist; expected the folder that the runs are in",
    ),
    Case(
        "compare to a file that exists",
        lambda place: place.alignloop("compare", "a", "b", "--page", place.write("notes.txt", "mine")),
        "notes.txt exists already; move it away, or give another name",
    ),
    Case(
        "compare to a folder",
        lambda place: place.alignloop("compare", "a", "b", "--page", place.folder),
        "the page HERE is a folder; expected the name of a file",
    ),
    Case(
        "generate from an empty path",
        program("generate", "model", "", "-o", "out.jsonl"),
        "'' is empty; expected a file, a folder or a hub name",
    ),
    Case(
        "generate from a broken mapping",
        program("generate", "model", "{path: ", "-o", "out.jsonl"),
        "{path: : not a mapping, as in {path: x.csv, columns:",
    ),
    Case("generate from no file", program("generate", "model", "gone.jsonl", "-o", "o"), "gone.jsonl does not exist"),
    Case("generate from an empty file", program("generate", *FILES, rows=""), "in.jsonl has no rows"),
    Case(
        "generate from documents", program("generate", *FILES, rows=[{"text": "a"}]), "in.jsonl has the columns text;"
    ),
    Case(
        "generate from a bad row",
        program("generate", *FILES, rows=[PROMPT, {"prompt": True}]),
        "in.jsonl:2: prompt: found True, expected",
    ),
    Case(
        "generate from rows set aside", program("generate", *FILES, rows=[PROMPT | {"weight": 0}]), "no prompt that can"
    ),
    Case("generate with an empty system prompt", program("generate", *FILES, "--system= "), "--system is empty"),
    Case(
        "generate that is too cold", program("generate", *FILES, "--temperature=-1"), "--temperature=-1.0: expected a"
    ),
    Case(
        "generate by nothing known",
        program("generate", *FILES, "--engine=x"),
        "--engine='x' is not one of transformers",
    ),
    Case(
        "generate by vllm of nowhere", program("generate", *FILES, "--engine=vllm"), "vllm.python is missing: the inter"
    ),
    Case("generate by no model", program("generate", "gone", *FILES[1:]), "gone has no tokenizer that can be read"),
    Case(
        "generate by a reward model",
        program("generate", "rm", *FILES[1:]),
        "rm is a reward model, expected a policy; `",
    ),
    Case(
        "score by a policy",
        program("score", *FILES[:4], rows=[ANSWERED]),
        "model is not a reward model, expected the m",
    ),
    Case(
        "score by no model", program("score", "gone", *FILES[1:4], rows=[ANSWERED]), "gone cannot be loaded as a model"
    ),
    Case(
        "score without answers", program("score", "rm", *FILES[1:4]), "in.jsonl has the columns prompt; expected messag"
    ),
    Case("score of an empty file", program("score", "rm", *FILES[1:4], rows=""), "in.jsonl has no rows"),
    Case(
        "score of no candidates",
        program("score", "rm", *FILES[1:4], rows=[{"prompt": [], "candidates": []}]),
        "in.jsonl:1: prompt_id: found nothing, expected a value (not a stored Candidates)",
    ),
    Case(
        "score of answers to nothing",
        program("score", "rm", *FILES[1:4], rows=[{"prompt": [], "prompt_id": "", "group_id": "", "candidates": []}]),
        "in.jsonl:1: prompt: found no messages, expected at least one (not a stored Candidates)",
    ),
    Case(
        "chat with a reward model", program("chat", "rm", "--prompt=hi"), "rm is a reward model, expected a policy; `al"
    ),
    Case(
        "chat scored by a policy",
        program("chat", "model", "--prompt=hi", "--reward_model=model"),
        "model is not a reward model, expected the model of a step reward_model",
    ),
    Case(
        "score by a run without a reward model",
        lambda place: place.alignloop("score", _run(place), "in.jsonl", "-o", "out.jsonl"),
        "run has no finished reward model; run the recipe further",
    ),
    Case(
        "generate too cold by the command",
        lambda place: place.alignloop("generate", _run(place, "config.json"), "in.jsonl", "-o", "o", "--top_p", "2"),
        "--top_p=2.0: expected a number above 0, at most 1",
    ),
]


def _run(place: Place, file: str = "summary.json") -> str:
    content = {"name": "a", "state": "done", "steps": [], "rounds": [], "best_policy": None}
    place.write(f"run/{file}", content)
    return "run"
