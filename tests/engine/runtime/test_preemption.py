"""SIGTERM with several processes: all of them answer it at the same point."""

import os
import signal

import pytest

from engine.runtime import preemption


class TwoProcesses:
    """An accelerator whose other process has no signal. `during` is called while both compare their flags."""

    num_processes = 2

    def __init__(self, during=lambda: None) -> None:
        self.during, self.is_set = during, False

    def set_trigger(self) -> None:
        self.is_set = True

    def check_trigger(self) -> bool:
        agreed, self.is_set = self.is_set, False
        self.during()
        return agreed


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_comes_while_the_processes_agree_waits_for_the_next_point():
    """The other process has left this point without it, and would wait in its next all-reduce for ever."""
    with preemption.listen_for_signals(), pytest.raises(preemption.Preempted), preemption.delayed():
        assert not preemption.is_requested(TwoProcesses(during=send_sigterm))
        assert preemption.is_requested(TwoProcesses())


def test_a_signal_at_another_process_is_answered_here_too():
    with preemption.listen_for_signals(), pytest.raises(preemption.Preempted), preemption.delayed():
        other = TwoProcesses()
        other.set_trigger()
        assert preemption.is_requested(other)
    assert not preemption.is_requested()
