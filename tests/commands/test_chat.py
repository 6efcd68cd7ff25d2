"""Which model `alignloop chat` opens, and what a conversation shows."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from commands import chat, program
from data_schemas.reading import read_rows
from data_schemas.rows import Candidates
from data_schemas.text import printable
from engine.sampling.transformers_engine import GroupGenerator
from tests.commands.programs import call
from tests.patience import PATIENCE
from tests.pipeline.toy_house import World
from tests.toy_rows import write_jsonl

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", ["runs/toy", "{step}", "{step}/model"])
def test_chat_accepts_a_run_a_step_or_a_model(target, tmp_path):
    world = World(tmp_path)
    (world.command.parent / "commands").mkdir()
    (world.command.parent / "commands" / "chat.py").write_text("import sys; print(sys.argv[1:])")
    world.run()
    step = f"runs/toy/{world.folder('round-1.dpo').name}"
    code, out, _ = world.call("chat", target.format(step=step), "--prompt", "hi", "--temperature", "0")
    assert code == 0
    options = ["--prompt=hi", "--temperature=0.0", "--top_p=1.0", "--max_new_tokens=256", "--seed=0", "--dtype=auto"]
    assert out == f"{[f'{step}/model', *options]}\n"


def test_the_answer_is_that_of_generate_with_the_same_settings(tiny_model, tmp_path, capsys):
    options = ("--system=Be brief.", "--max_new_tokens=12", "--temperature=1", "--top_p=0.9", "--seed=3")
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "Hi?"}])
    assert call("generate", tiny_model, tmp_path / "p.jsonl", "-o", tmp_path / "a.jsonl", *options) == 0
    (row,) = read_rows(tmp_path / "a.jsonl", Candidates)
    capsys.readouterr()
    assert call("chat", tiny_model, "--prompt=Hi?", *options) == 0
    assert capsys.readouterr().out == f"{printable(row.candidates[0].text)}\n"


class Typed(io.StringIO):
    """Lines that are typed on a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the texts of the answers; returns a function that gives the questions which each answer was given."""

    def script(*texts):
        seen, answers = [], iter(texts)

        def stream(self, prompt, streamer):
            seen.append([turn.content for turn in prompt.requests[0].prompt.prompt])
            if (text := next(answers)) is KeyboardInterrupt:
                raise KeyboardInterrupt
            streamer.on_finalized_text(text, stream_end=True)
            return {"text": text, "ids": [1], "ended": True}

        monkeypatch.setattr(GroupGenerator, "stream", stream)
        return seen

    return script


def test_two_models_answer_in_their_own_conversations_and_are_scored(
    tiny_model, tied_model, tiny_reward_model, scripted, monkeypatch, capsys
):
    """The text of an answer is scripted; the second answer of the first model is interrupted, and one is empty."""
    seen = scripted("one", "two", KeyboardInterrupt, "three", " ")
    monkeypatch.setattr(sys, "stdin", Typed("a\nb\nc\n\nnot read\n"))
    assert call("chat", tiny_model, "--with", tied_model, "--reward_model", tiny_reward_model) == 0
    assert seen == [["a"], ["a"], ["a", "one", "b"], ["a", "one", "c"], ["a", "two", "c"]]
    out = re.sub(r"reward -?\d+\.\d{3}", "reward X", capsys.readouterr().out).splitlines()
    assert out == [
        "(an empty line ends the conversation, and /new starts another)",
        "you: model: one",
        "(reward X)",
        "tied: two",
        "(reward X)",
        "you: model: ",
        "(stopped: this answer is not part of the conversation)",
        "you: model: three",
        "(reward X)",
        "tied:  ",
        "(no answer)",
        "you: ",
    ]


def test_lines_of_a_pipe_are_printed_before_their_answers_and_form_one_conversation(
    tiny_model, scripted, monkeypatch, capsys
):
    seen = scripted("one", "two")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\na\n\n  \nb"))
    assert call("chat", tiny_model) == 0
    assert seen == [["a"], ["a", "one", "b"]]
    hint, *lines = capsys.readouterr().out.splitlines()
    assert "empty lines are skipped" in hint and "`alignloop generate` answers independent prompts" in hint
    assert lines == ["you: a", "model: one", "you: b", "model: two"]


@pytest.mark.parametrize("lines", [io.StringIO, Typed])
def test_new_starts_a_conversation_with_the_same_system_prompt(lines, tiny_model, scripted, monkeypatch, capsys):
    seen = scripted("one", "two", "three")
    monkeypatch.setattr(sys, "stdin", lines("a\n/new\nb\nc\n"))
    assert call("chat", tiny_model, "--system", "Be brief.") == 0
    assert seen == [["Be brief.", "a"], ["Be brief.", "b"], ["Be brief.", "b", "two", "c"]]
    assert "(a new conversation)\n" in capsys.readouterr().out


def test_chat_shows_that_it_imports_torch(tiny_model, scripted, monkeypatch):
    scripted("one")
    entered = []

    @contextlib.contextmanager
    def displayed(console):
        entered.append(console.stderr)
        yield

    @contextlib.contextmanager
    def activity(name, **_):
        entered.append(name)
        yield

    monkeypatch.setattr(chat, "displayed", displayed)
    monkeypatch.setattr(program.progress, "activity", activity)
    assert call("chat", tiny_model, "--prompt=Hi?") == 0
    assert entered[:2] == [True, "importing torch and transformers"]


def test_chat_imports_neither_torch_nor_transformers_before_it_says_so():
    code = "import sys, commands.chat; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=PATIENCE).returncode == 0


def test_an_answer_is_printed_while_it_is_generated(tiny_model, monkeypatch, capsys):
    printed = []

    def generate(self, prompts, requests, streamer):
        streamer.put(torch.tensor([prompts[0]]))
        ids = self.tokenizer("It is a large city.", add_special_tokens=False)["input_ids"]
        for token in ids:
            streamer.put(torch.tensor([token]))
            printed.append(capsys.readouterr().out)
        streamer.end()
        return [[*ids, self.tokenizer.eos_token_id]]

    monkeypatch.setattr(GroupGenerator, "_generate_batch", generate)
    assert call("chat", tiny_model, "--prompt=Hi?") == 0
    assert [piece for piece in printed if piece] == ["It ", "is ", "a ", "large "]
    assert capsys.readouterr().out == "city.\n"
