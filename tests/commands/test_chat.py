"""Which model `alignloop chat` opens, and what a conversation shows."""

import builtins
import re

import pytest
import torch

from data_schemas.reading import read_rows
from data_schemas.rows import Candidates
from data_schemas.text import printable
from engine.sampling.transformers_engine import GroupGenerator
from tests.commands.programs import call
from tests.pipeline.toy_house import World
from tests.toy_rows import write_jsonl


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


def test_two_models_answer_in_their_own_conversations_and_are_scored(
    tiny_model, tied_model, tiny_reward_model, monkeypatch, capsys
):
    """The text of an answer is scripted; the second answer of the first model is interrupted, and one is empty."""
    seen, texts = [], iter(["one", "two", KeyboardInterrupt, "three", " "])

    def stream(self, prompt, streamer):
        seen.append([turn.content for turn in prompt.requests[0].prompt.prompt])
        if (text := next(texts)) is KeyboardInterrupt:
            raise KeyboardInterrupt
        streamer.on_finalized_text(text, stream_end=True)
        return {"text": text, "ids": [1], "ended": True}

    lines = iter(["a", "b", "c", ""])
    monkeypatch.setattr(builtins, "input", lambda _: next(lines))
    monkeypatch.setattr(GroupGenerator, "stream", stream)
    assert call("chat", tiny_model, "--with", tied_model, "--reward_model", tiny_reward_model) == 0
    assert seen == [["a"], ["a"], ["a", "one", "b"], ["a", "one", "c"], ["a", "two", "c"]]
    out = re.sub(r"reward -?\d+\.\d{3}", "reward X", capsys.readouterr().out).splitlines()
    assert out == [
        "(an empty line ends the conversation)",
        "model: one",
        "(reward X)",
        "tied: two",
        "(reward X)",
        "model: ",
        "(stopped: this answer is not part of the conversation)",
        "model: three",
        "(reward X)",
        "tied:  ",
        "(no answer)",
    ]


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
