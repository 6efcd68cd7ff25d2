"""SIGTERM, as a cluster sends it before it takes a machine back: answered where the work can go on from later.

Work that should not be cut in two runs inside `delayed()`, or asks `is_due` at places of its own. Anywhere else SIGTERM
raises Preempted at once.
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM
log = logging.getLogger(__name__)


class Preempted(BaseException):
    """SIGTERM was answered; `saved` says what a later run goes on from."""

    def __init__(self, saved: str = "") -> None:
        super().__init__(saved)
        self.saved = saved


class _State:
    asked = False  # SIGTERM has come
    depth = 0  # of delays
    last = 0.0  # when it could have been answered last
    longest = 0.0  # seconds between two such moments


@contextlib.contextmanager
def listen_for_signals() -> Iterator[None]:
    """SIGTERM is ours inside. In the main thread alone, as the interpreter wants it."""
    _State.longest = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _State.asked = False


def _ask(number: int, frame: object) -> None:
    _State.asked = True
    if not _State.depth:
        raise Preempted


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """SIGTERM inside raises Preempted at the end, not before."""
    if not _State.depth:
        _State.last = time.monotonic()
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        _look()
    if _State.asked and not _State.depth:
        raise Preempted


def is_requested(accelerator: Any = None) -> bool:
    """Whether SIGTERM has come; with an accelerator, to any of its processes, all of which call this together."""
    _look()
    if accelerator is None or accelerator.num_processes == 1:
        return _State.asked
    if _State.asked:
        accelerator.set_trigger()
    _State.asked = accelerator.check_trigger() or _State.asked
    return _State.asked


def forget() -> None:
    """A SIGTERM that has come is not answered: the work is done sooner than it could be saved."""
    _State.asked = False


def longest_wait() -> float:
    """Seconds that SIGTERM would have waited for its answer at most, up to now."""
    return _State.longest


def _look() -> None:
    now = time.monotonic()
    _State.longest, _State.last = max(_State.longest, now - _State.last), now
