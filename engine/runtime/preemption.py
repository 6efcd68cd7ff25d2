"""SIGTERM, which a cluster sends before it takes a machine back: answered at a point from which work can resume.

Work that must not be interrupted runs inside `delayed()`, or asks `is_requested()` at suitable points. Anywhere else
SIGTERM raises Preempted at once.
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not at run time: stages that only read rows do without torch
    from accelerate import Accelerator

EXIT_CODE = 128 + signal.SIGTERM
log = logging.getLogger(__name__)


class Preempted(BaseException):
    """SIGTERM was answered; `saved` describes what a later run resumes from."""

    def __init__(self, saved: str = "") -> None:
        super().__init__(saved)
        self.saved = saved


@dataclass
class _State:
    is_requested: bool = False  # SIGTERM has arrived and is not answered yet
    num_delays: int = 0  # nested `delayed()` blocks that this process is in
    last_chance: float = 0.0  # when SIGTERM could last have been answered, in seconds of the monotonic clock
    longest_wait: float = 0.0  # seconds between two such moments, at most


_state = _State()  # one for the process, as its signal handler is


@contextlib.contextmanager
def listen_for_signals() -> Iterator[None]:
    """Handles SIGTERM inside. Does nothing outside of the main thread, the only one that may set a handler."""
    _state.longest_wait = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _state.is_requested = False


def _handle(number: int, frame: object) -> None:
    _state.is_requested = True
    if not _state.num_delays:
        raise Preempted


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """SIGTERM inside raises Preempted at the end of the block, not before."""
    if not _state.num_delays:
        _state.last_chance = time.monotonic()
    _state.num_delays += 1
    try:
        yield
    finally:
        _state.num_delays -= 1
        _record_chance()
    if _state.is_requested and not _state.num_delays:
        raise Preempted


def is_requested(accelerator: "Accelerator | None" = None) -> bool:
    """Whether SIGTERM has arrived; with an accelerator, at any of its processes, all of which call this together."""
    _record_chance()
    if accelerator is None or accelerator.num_processes == 1:
        return _state.is_requested
    if _state.is_requested:
        accelerator.set_trigger()
    # Not `_state.is_requested`: a signal that comes while the processes compare is known to this one only. If this one
    # stopped here, another would wait for it in the next all-reduce. All of them learn of it at the next call.
    if is_agreed := accelerator.check_trigger():
        _state.is_requested = True
    return is_agreed


def forget() -> None:
    """Ignores a SIGTERM that has arrived: the remaining work takes less time than saving would."""
    _state.is_requested = False


def longest_wait() -> float:
    """Seconds that SIGTERM would have waited for its answer at most, up to now."""
    return _state.longest_wait


def _record_chance() -> None:
    now = time.monotonic()
    _state.longest_wait, _state.last_chance = max(_state.longest_wait, now - _state.last_chance), now
