"""On a terminal that has only ASCII, every command shows Korean and emoji as escapes, and never a traceback."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest
from typer.main import get_command

from commands import assess, chat, check, generate, rewardbench, scale, score, speakers
from data_schemas.unexpected import guarded
from pipeline import cli
from pipeline.cli.app import app
from tests.loop_recipes import COMMAND
from tests.patience import PATIENCE
from tests.pipeline.report.page.run_folders import write_run
from tests.pipeline.toy_house import World

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
HELLO = "안녕 🙂"
ESCAPED = r"\uc548\ub155 \U0001f642"
ROWS = "대화 🙂.jsonl"
RECIPE = "요리.yaml"

WORLD_COMMANDS = {  # command -> its words, and whether it shows a name or a text in Korean
    "init": (["init"], False),
    "plan": (["plan", RECIPE], True),
    "submit": (
        ["submit", RECIPE, "--to", "slurm", "--no-estimate", "--out", "작업", "--set", "defaults.bf16=true"],
        True,
    ),
    "status": (["status", "runs/toy"], True),
    "list": (["list"], False),
    "report": (["report", "runs/toy"], False),
    "compare": (["compare", "runs/toy", "runs/toy", "--page", "비교.html"], True),
    "export": (["export", "runs/toy", "모델"], True),
    "verify": (["verify", "runs/toy"], False),
    "prune": (["prune", "runs/toy"], False),
    "run": (["run", RECIPE, "--set", "rounds=1", "--no-preflight"], False),  # it writes the summary again
}
OTHERS = {  # programs of commands/, which have a test each below
    *("data", "check", "chat", "generate", "scale", "score", "rewardbench", "assess", "calibrate"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run whose recipe and rows have Korean names, and whose sample answers are Korean."""
    made = World(tmp_path_factory.mktemp("ascii"))
    (made.work / "chats.jsonl").rename(made.work / ROWS)
    text = (made.work / "toy.yaml").read_text().replace("chats.jsonl", f"'{ROWS}'")
    (made.work / RECIPE).write_text(text, encoding="utf-8")
    assert made.call("run", RECIPE, "--set", "rounds=1", "--no-preflight")[0] == 0
    summary = made.summary()
    sample = {"policy": "round-1.dpo", "prompt": HELLO, "answer": HELLO, "ended": True}
    (made.run_folder / "summary.json").write_text(json.dumps(summary | {"rounds": [], "samples": [sample]}))
    return made


def check_ascii(out: str, err: str, *, shows_korean: bool) -> None:
    assert out.isascii() and err.isascii()
    assert "Unicode" not in out + err and "Traceback" not in out + err
    if shows_korean:
        assert r"\u" in out + err


def test_every_command_has_a_case():
    assert cli.app is app
    assert set(get_command(app).list_commands(None)) == {*WORLD_COMMANDS, *OTHERS}  # pyright: ignore


@pytest.mark.parametrize("name", WORLD_COMMANDS)
def test_a_command_of_recipes_and_runs_shows_escapes(name, world):
    words, shows_korean = WORLD_COMMANDS[name]
    code, out, err = world.call(*words, **ASCII)
    assert code == 0, err
    check_ascii(out, err, shows_korean=shows_korean)


@pytest.mark.parametrize("words", [["plan", "없다.yaml"], ["run", RECIPE, "--set", "이름=1"], ["status", "런"]])
def test_a_mistake_is_one_line_with_escapes(words, world):
    code, out, err = world.call(*words, **ASCII)
    assert (code, out, err.count("\n")) == (2, "", 1)
    check_ascii(out, err, shows_korean=True)


def test_calibrate_shows_escapes(world, tmp_path):
    run = write_run(tmp_path / "toy", answers=2)
    summary = json.loads((run / "summary.json").read_text())
    summary["steps"][-1]["name"] = HELLO
    (run / "summary.json").write_text(json.dumps(summary))
    code, out, err = world.call("calibrate", str(run), **ASCII)
    assert code == 0, err
    check_ascii(out, err, shows_korean=True)


def test_data_shows_escapes(tmp_path):
    (tmp_path / ROWS).write_text(json.dumps({"prompt": HELLO, "completion": HELLO}) + "\n")
    done = subprocess.run(
        [COMMAND, "data", ROWS], cwd=tmp_path, env=os.environ | ASCII, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    check_ascii(done.stdout, done.stderr, shows_korean=True)
    assert f"user: {ESCAPED}\n" in done.stdout


def test_scale_shows_escapes(terminal, tmp_path):
    rows = [f"{n * 1e6},{d * 1e8},{1.7 + n**-0.3 + d**-0.3}" for n in (1, 2, 4) for d in (1, 2, 4)]
    (tmp_path / "표 🙂.csv").write_text("\n".join(["parameters,tokens,loss", *rows]))
    out, err = terminal(scale.main, tmp_path / "표 🙂.csv")
    check_ascii(out, err, shows_korean=True)
    assert r"\ud45c \U0001f642.csv" in out + err


@pytest.fixture
def terminal(monkeypatch):
    """Standard input, output and error in ASCII, as `PYTHONIOENCODING=ascii` sets them. Returns what was printed."""

    def play(main, *words, typed=b""):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="ascii"))
        printed = {"stdout": io.BytesIO(), "stderr": io.BytesIO()}
        for name, stream in printed.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding="ascii", write_through=True))
        assert guarded(main) == 0, printed["stderr"].getvalue().decode()
        return [stream.getvalue().decode("ascii") for stream in printed.values()]

    yield play
    logging.disable(logging.NOTSET)  # `check` logs no information, for the rest of its process


def test_check_shows_escapes(terminal, tiny_model, tmp_path):
    request = {
        "tokenizer": {"path": str(tiny_model), "is_prepared": True, "revision": "main", "trust_remote_code": False},
        "model": {"path": str(tiny_model), "revision": "main"},
        "steps": [],
        "missing": [HELLO],
        "precisions": [],
        "show": 1,
        "notes": [f"{ROWS}: ignored columns: {HELLO}"],
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    out, err = terminal(check.main, tmp_path / "request.json")
    check_ascii(out, err, shows_korean=True)
    assert out.count(ESCAPED) == 2


def test_chat_shows_escapes_and_reads_what_is_typed(terminal, tiny_model, monkeypatch):
    dialogs = []
    encoded = [1, 2]
    monkeypatch.setattr(
        speakers, "encode_prompt", lambda _, dialog: dialogs.append([m.content for m in dialog]) or encoded
    )
    typed = f"{HELLO}\n\n".encode()
    words = [tiny_model, "--max_new_tokens", "6", "--temperature", "0", "--use_cpu"]
    out, err = terminal(chat.main, *words, typed=typed)
    assert dialogs == [[HELLO]]
    check_ascii(out, err, shows_korean=True)


def test_generate_and_score_show_escapes(terminal, tiny_model, tiny_reward_model, tmp_path):
    (tmp_path / ROWS).write_text(json.dumps({"prompt": HELLO}) + "\n")
    answers, scored = tmp_path / "답.jsonl", tmp_path / "점수.jsonl"
    few = ("--max_new_tokens", "4", "--use_cpu")
    for words in (
        (generate.main, tiny_model, tmp_path / ROWS, "-o", answers, *few),
        (score.main, tiny_reward_model, answers, "-o", scored, "--use_cpu"),
    ):
        out, err = terminal(*words)
        check_ascii(out, err, shows_korean=True)
    assert json.loads(scored.read_text(encoding="utf-8"))["prompt"][0]["content"] == HELLO


def test_rewardbench_shows_escapes(terminal, tiny_reward_model, tmp_path):
    row = {"prompt": HELLO, "chosen": "Hi.", "rejected": HELLO, "subset": HELLO}
    (tmp_path / ROWS).write_text(json.dumps(row) + "\n")
    words = (tiny_reward_model, tmp_path / ROWS, "-o", tmp_path / "점수.jsonl", "--use_cpu")
    out, err = terminal(rewardbench.main, *words)
    check_ascii(out, err, shows_korean=True)
    assert f"| {ESCAPED} | 1 | " in out


def test_assess_shows_escapes(terminal, tiny_model, tmp_path):
    (tmp_path / ROWS).write_text(json.dumps({"question": HELLO, "answer": "#### 1"}) + "\n")
    model = {"model": str(tiny_model)}
    content = {
        "instructions": str(tmp_path / ROWS),
        "judge": {"task": "gsm8k"},
        "candidates": {HELLO: model, "b": model | {"system": HELLO}},
    }
    (tmp_path / "assess.yaml").write_text(json.dumps(content))
    out, err = terminal(assess.main, tmp_path / "assess.yaml", "-o", tmp_path / "a", "--max_new_tokens=4", "--use_cpu")
    check_ascii(out, err, shows_korean=True)
    assert out.count(ESCAPED) >= 2
