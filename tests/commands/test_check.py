"""`alignloop check`: the rows that it shows, and its advice about precision."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import AutoTokenizer

from commands import check
from data_schemas.rows import Conversation, Message
from data_schemas.text import printable
from engine.models import precision
from engine.models.precision import Layer
from stages import sft
from tests.loop_recipes import COMMAND
from tests.patience import PATIENCE
from tests.toy_rows import pair, write_jsonl


def encode_of(module: Any, tokenizer: Any, **keys: Any) -> Any:
    return module.encoder(tokenizer, module.ARGUMENTS[0](train_data=[], **keys))[0]


SLOW = {"float32": 165e9, "bfloat16": 398e9}  # bf16 is 2.41 times as fast


# -- what is shown ------------------------------------------------------------------------------------------------


def test_trained_tokens_are_green_in_a_terminal_and_between_marks_elsewhere(tokenizer):
    encode = encode_of(sft, tokenizer)
    (row,) = encode(
        Conversation(messages=[Message(role="user", content="Hi"), Message(role="assistant", content="Yo")])
    )
    ids, trained = row.sequences[0], row.trained[0]
    plain = check.coloured(tokenizer, ids, trained, marked=True)
    assert plain.plain == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧"
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as shown:
        console.print(check.coloured(tokenizer, ids, trained, marked=False))
    assert "\x1b[1;32mYo<|im_end|>\x1b[0m" in shown.get() and "\x1b[1;32mHi" not in shown.get()


def test_control_characters_are_shown_escaped():
    assert printable("a\tb\nc é 👩‍🔬") == "a\tb\nc é 👩‍🔬"
    assert printable("\x1b[2J\x9b2J\r\x07 \u202egpj.exe") == "\\x1b[2J\\x9b2J\\r\\x07 \\u202egpj.exe"


# -- the command --------------------------------------------------------------------------------------------------


def run_check(folder: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    recipe: dict[str, Any] = {
        "name": "mine",
        "rounds": 1,
        "launch": {"device": "cpu"},
        "prepare_base": {"chat_template": "chatml"},
        "data": {
            "preferences": ["pairs.jsonl"],
            "judge_share": 0.4,
            "chosen_as_instructions": 0.4,
            "validation_share": 0.3,
        },
        "defaults": {"report_to": "none", "max_length": 90},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | settings))
    return subprocess.run(
        [COMMAND, "check", "recipe.yaml", "--rows", "1"],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_command_shows_every_stages_rows_and_writes_nothing_into_the_run(tiny_base, tmp_path):
    bad = pair(151) | {"rejected": [{"role": "assistant", "content": "\x1b[2Jgone"}]}
    write_jsonl(tmp_path / "pairs.jsonl", [pair(number) | {"topic": "\x1b"} for number in range(150)] + [bad])
    done = run_check(tmp_path, base_model=str(tiny_base))
    assert done.returncode == 0, done.stderr
    assert "pairs.jsonl: ignored columns: topic" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "recipe.yaml"]
    out = done.stdout
    assert "a turn ends in <|im_end|>, pad is <|endoftext|> (the tokenizer's own)" in out
    for step in (
        "judge (reward_model)",
        "round-0.sft (sft)",
        "round-1.reward_model (reward_model)",
        "round-1.dpo (dpo)",
    ):
        assert step in out
    assert "rows left out (longer than max_length)" in out and "% of all tokens" in out
    assert out.count("<|im_start|>assistant\n⟦") >= 3
    assert "not checked, since these steps have not run yet: round-1.rejection_sampling" in out
    assert "\x1b" not in out + done.stderr
    assert "Traceback" not in done.stderr


def test_rows_of_a_reward_model_from_outside_are_in_its_own_tokens(tiny_base, tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [pair(number) for number in range(150)])
    other = shutil.copytree(tiny_base, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["Question", " what is the capital of"])
    tokenizer.save_pretrained(other)
    done = run_check(tmp_path, base_model=str(tiny_base), reward_model_from=str(other))
    assert done.returncode == 0, done.stderr
    sizes = re.findall(r"^tokenizer(.*): (\d+) tokens", done.stdout, flags=re.MULTILINE)
    assert [name for name, _ in sizes] == ["", " of reward_model_from"] and int(sizes[1][1]) > int(sizes[0][1])
    steps = re.split(r"^(\S+) \(\w+\) ─.*$", done.stdout, flags=re.MULTILINE)
    medians = {
        name: int(re.findall(r"median (\d+)", text)[0]) for name, text in zip(steps[1::2], steps[2::2], strict=True)
    }
    assert medians["round-1.reward_model"] < medians["round-1.dpo"]


def test_a_stage_that_could_not_train_is_an_error_line_and_exit_code_two(tiny_base, tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [pair(number) for number in range(150)])
    template = "{% for m in messages %}{{ m['content'] | upper }}<|endoftext|>{% endfor %}probe"
    done = run_check(tmp_path, base_model=str(tiny_base), prepare_base={"chat_template": template})
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    done = run_check(tmp_path, base_model=str(tiny_base), defaults={"max_length": 5})
    assert done.returncode == 2
    assert "error: round-1.dpo: train: nothing is left of" in done.stderr


# -- precision ----------------------------------------------------------------------------------------------------


def test_advice_is_one_line_with_its_stages(monkeypatch):
    monkeypatch.setattr(precision, "measure", lambda *_, **__: SLOW)
    monkeypatch.setattr(precision.os, "getloadavg", lambda: (0.3, 0.0, 0.0))
    console = Console(width=300, record=True, quiet=False, force_terminal=False)
    how = {"use": "training", "key": "bf16", "chosen": "float32", "by_default": False, "tokens": 512, "device": "cpu"}
    with console.capture() as shown:
        check.advise(Layer(8, 8), [how | {"stages": ["sft", "dpo"]}, how | {"chosen": "bfloat16"}], console)
    assert shown.get().startswith("sft, dpo: bf16: true would make matrix products 2.4 times as fast here (fp32 165")
    assert shown.get().count("\n") == 1


def test_nothing_is_measured_on_a_busy_machine(monkeypatch):
    monkeypatch.setattr(precision, "measure", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr(precision.os, "getloadavg", lambda: (17.2, 0.0, 0.0))
    monkeypatch.setattr(precision.os, "cpu_count", lambda: 2)
    console = Console(width=300)
    with console.capture() as shown:
        check.advise(Layer(8, 8), [{"device": "cpu"}], console)
    assert shown.get() == "precision is not measured: this machine is busy (load 17 on 2 cores)\n"


def test_a_model_whose_sizes_are_not_available_is_no_error(tmp_path, tiny_base):
    assert check.read_layer({"path": str(tmp_path / "gone")}) is None
    assert check.read_layer({"path": str(tiny_base)}) == Layer(32, 64)
    assert check.read_layer({"architecture": {"hidden_size": 128, "intermediate_size": 384}}) == Layer(128, 384)
