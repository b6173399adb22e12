"""Stop requests: a signal asks long work to stop at its next safe point, where everything computed is on disk.

Batch systems send a signal some time before they kill. `install` makes SIGTERM and SIGUSR1 such requests; `polite` adds
Ctrl-C while a block runs, and a second signal then ends the work at once. After a request a `core.progress` bar raises
`Stopped` when it is advanced, which loops do once an item's result is kept. Loops that save their state first, or whose
processes have to stop together, check `requested` themselves and use a bar that does not raise (``stops=False``).
Without an installed handler nothing is requested and nothing raises.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_SAME = 1.0  # seconds in which a second signal counts as the first: torchrun repeats what the whole group received

_asked: list[str] = []  # names of the signals received, oldest first


class Stopped(BaseException):
    """Work ended at a safe point because it was asked to; the same unit resumes there when it runs again.

    Like KeyboardInterrupt it is not an ``Exception``, so that no handler takes it for a failure.
    """


class Interrupted(Stopped):
    """A run ended at a safe point. ``number``: of the signal; ``saved``: unit -> its saved progress."""

    def __init__(self, why: str, saved: Mapping[str, str]) -> None:
        super().__init__(why)
        self.saved = dict(saved)
        asked = reason()
        self.number = signal.Signals[asked] if asked in signal.Signals.__members__ else signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing waits for a safe point: it ends the work as Ctrl-C does."""


def install() -> None:
    """From now on SIGTERM and SIGUSR1 request a stop instead of ending the process. Main thread only."""
    for number in SIGNALS:
        signal.signal(number, _request_by_signal)


@contextmanager
def polite() -> Iterator[None]:
    """Makes Ctrl-C, SIGTERM and SIGUSR1 requests; a second one raises KeyboardInterrupt (`Terminated` for SIGTERM).

    Only the main thread receives signals: in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            _request_by_signal(number, frame)
            with suppress(OSError):  # past Python's buffers, which the interrupted code may hold
                os.write(2, b"\nstopping at the next safe point; once more ends it at once\n")
        elif time.monotonic() - first[0] >= _SAME:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, *SIGNALS)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
        _asked.clear()


def request(why: str = "asked to stop") -> None:
    """Requests a stop as a signal does; `reason` returns ``why``."""
    _asked.append(why)


def requested() -> bool:
    """True once a stop was requested."""
    return bool(_asked)


def reason() -> str:
    """The first request: ``SIGUSR1``, ``SIGTERM``; empty where there is none."""
    return _asked[0] if _asked else ""


def stop_if_requested() -> None:
    """Raises `Stopped` where a stop was requested. Call it where everything worth keeping is on disk."""
    if _asked:
        raise Stopped(reason())


def _request_by_signal(number: int, _: FrameType | None) -> None:
    request(signal.Signals(number).name)
