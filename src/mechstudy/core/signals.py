"""A polite end: a signal asks long work to stop at its next safe point, where what it has computed is on disk.

Batch systems send a signal some time before they kill. `install` takes SIGTERM and SIGUSR1 as such a request, `polite`
Ctrl-C too for as long as a block runs, where a second one ends it at once. From then on a `core.progress` bar raises
`Stopped` when it is advanced, which loops do once an item's result is kept. Loops whose state has to be saved first, or
whose processes have to stop together, ask `requested` themselves and use a bar that does not raise (``stops=False``).
Nothing is asked, and nothing raised, where no handler was installed.
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
_SAME = 1.0  # seconds in which a second signal is taken for the first: torchrun passes on what the whole group was sent

_asked: list[str] = []  # names of the signals that came, first one first


class Stopped(BaseException):
    """Work ended at a safe point because it was asked to; the same unit goes on from there when it runs again.

    Like KeyboardInterrupt no ``Exception``: nothing may take it for a failure.
    """


class Interrupted(Stopped):
    """A run ended at a safe point. ``number``: of the signal; ``saved``: unit -> how far it has got."""

    def __init__(self, why: str, saved: Mapping[str, str]) -> None:
        super().__init__(why)
        self.saved = dict(saved)
        asked = reason()
        self.number = signal.Signals[asked] if asked in signal.Signals.__members__ else signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing waits for a safe point: it ends what runs as Ctrl-C does."""


def install() -> None:
    """From now on SIGTERM and SIGUSR1 ask for a stop instead of ending the process. Main thread only."""
    for number in SIGNALS:
        signal.signal(number, _note)


@contextmanager
def installed() -> Iterator[None]:
    """`install` for as long as a block runs; afterwards the handlers are those from before, and nothing is asked."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


@contextmanager
def polite() -> Iterator[None]:
    """Takes Ctrl-C, SIGTERM and SIGUSR1 for requests inside; a second one raises KeyboardInterrupt (`Terminated`).

    Only the main thread hears signals: in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *SIGNALS)}
    first: list[float] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            _note(number, frame)
            _tell("\nstopping at the next safe point; once more ends it at once\n")
        elif time.monotonic() - first[0] >= _SAME:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def _tell(text: str) -> None:
    """To standard error past Python's buffers, which the code that was interrupted may hold."""
    with suppress(OSError):
        os.write(2, text.encode())


def request(why: str = "asked to stop") -> None:
    """Asks for a stop as a signal does; ``why`` is what `reason` says."""
    _asked.append(why)


def requested() -> bool:
    """True once a stop was asked for."""
    return bool(_asked)


def reason() -> str:
    """What asked first: ``SIGUSR1``, ``SIGTERM``; empty where nothing did."""
    return _asked[0] if _asked else ""


def stop_if_requested() -> None:
    """Raises `Stopped` where a stop was asked for. Called where everything worth keeping is on disk."""
    if _asked:
        raise Stopped(reason())


def _note(number: int, _: FrameType | None) -> None:
    request(signal.Signals(number).name)
