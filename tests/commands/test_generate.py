"""`alignloop generate`: answers in a file that is complete or absent, and continues where it was interrupted."""

import json
import os
import signal
import subprocess
import sys

import pytest

from data_schemas.reading import read_rows
from data_schemas.rows import Candidates
from engine.sampling.transformers_engine import GroupGenerator
from tests.commands.programs import call, jsonl
from tests.patience import PATIENCE
from tests.processes import within
from tests.stage_runs import ROOT
from tests.toy_prompts import PROMPTS
from tests.toy_rows import write_jsonl

ESCAPE = "\x1b[2J\u202e"
SETTINGS = ("--num_answers=3", "--max_new_tokens=6", "--generation_batch_size=3")  # groups of four prompts: two


@pytest.fixture
def prompts(tmp_path):
    return jsonl(tmp_path / "prompts.jsonl", *PROMPTS)


def test_every_prompt_has_its_answers_with_the_system_prompt(tiny_model, tmp_path, capsys):
    rows = [{"prompt": "Hi?"}, {"prompt": [{"role": "system", "content": "own"}, {"role": "user", "content": "Hi?"}]}]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    assert (
        call("generate", tiny_model, tmp_path / "prompts.jsonl", "-o", tmp_path / "a.jsonl", "--system=S", *SETTINGS)
        == 0
    )
    first, second = read_rows(tmp_path / "a.jsonl", Candidates)
    assert [row.prompt[0].content for row in (first, second)] == ["S", "own"]
    assert [answer.k for answer in first.candidates] == [0, 1, 2]
    assert {answer.policy for answer in first.candidates} == {tiny_model.name}
    assert all(answer.score is None and 0 < answer.num_tokens <= 6 for answer in first.candidates)
    assert capsys.readouterr().out.startswith(f"{tmp_path}/a.jsonl: 6 answers to 2 prompts, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "prompts.jsonl"]


def test_an_interrupted_file_is_continued_with_the_same_settings_only(
    tiny_model, prompts, tmp_path, monkeypatch, capsys
):
    words, output = (tiny_model, prompts, *SETTINGS), tmp_path / "a.jsonl"
    generate, sizes = GroupGenerator.generate, []

    def recorded(self, group):
        sizes.append(len(group))
        return generate(self, group)

    def interrupted(self, group):
        if sizes:
            raise KeyboardInterrupt
        return recorded(self, group)

    monkeypatch.setattr(GroupGenerator, "generate", interrupted)
    assert call("generate", *words, "-o", output) == 130
    kept = f"finished batches are kept in {output}.unfinished, and the same command continues from them\n"
    assert capsys.readouterr().err.endswith(f"interrupted; {kept}")
    assert not output.exists()
    monkeypatch.setattr(GroupGenerator, "generate", recorded)
    assert call("generate", *words, "-o", output, "--temperature=0.5", "--seed=1") == 2
    assert "holds finished batches of other settings (temperature, seed); give the same" in capsys.readouterr().err
    assert call("generate", *words, "-o", output) == 0
    assert sizes == [4, 3]  # the first group is not generated again
    assert not output.with_name("a.jsonl.unfinished").exists()
    assert call("generate", *words, "-o", tmp_path / "b.jsonl") == 0
    assert output.read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_killed_command_gives_the_same_file_when_it_is_typed_again(tiny_model, prompts, tmp_path):
    settings = ("--num_answers=4", "--max_new_tokens=15", "--generation_batch_size=1", "--use_cpu")
    words = [str(word) for word in (tiny_model, prompts, *settings)]
    program = [sys.executable, str(ROOT / "commands" / "generate.py"), *words]
    output, batches = tmp_path / "killed.jsonl", tmp_path / "killed.jsonl.unfinished" / "checkpoints"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [*program, "-o", str(output)],
        env=environment,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),  # one thread
    )
    assert within(PATIENCE, lambda: list(batches.glob("*/0.json")) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not output.exists()
    assert len(list(batches.glob("*/[0-9]*.json"))) < len(PROMPTS)
    assert call("generate", *words[:-1], "-o", output) == 0
    assert call("generate", *words[:-1], "-o", tmp_path / "whole.jsonl") == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_text_of_rows_and_names_reaches_no_terminal_raw(tiny_model, tmp_path, capfd):
    write_jsonl(tmp_path / f"p{ESCAPE}.jsonl", [{"prompt": "Hi?", ESCAPE: 1}])
    output = tmp_path / f"a{ESCAPE}.jsonl"
    assert call("generate", tiny_model, tmp_path / f"p{ESCAPE}.jsonl", "-o", output, "--max_new_tokens=2") == 0
    assert call("generate", tiny_model, tmp_path / f"p{ESCAPE}.jsonl", "-o", output) == 2
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": [{"role": ESCAPE, "content": "a"}]}])
    assert call("generate", tiny_model, tmp_path / "bad.jsonl", "-o", tmp_path / "b.jsonl") == 2
    out, err = capfd.readouterr()
    assert not set(ESCAPE[:1] + ESCAPE[-1:]) & set(out + err)
    assert "\\x1b[2J\\u202e" in out and err.count("\\x1b[2J\\u202e") >= 2
    assert json.loads(output.read_text())["prompt"] == [{"role": "user", "content": "Hi?"}]
