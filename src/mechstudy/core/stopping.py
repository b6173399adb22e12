"""A polite end: a signal asks long work to stop at its next safe point, where what it has computed is on disk.

Batch systems send a signal some time before they kill. `install` takes SIGTERM and SIGUSR1 as such a request;
from then on a `core.progress` bar raises `Stopped` when it is advanced, which loops do once an item's result is kept.
Loops whose state has to be saved first, or whose processes have to stop together, ask `requested` themselves and use
a bar that does not raise (``stops=False``). Nothing is asked, and nothing raised, where no handler was installed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_asked: list[str] = []  # names of the signals that came, first one first


class Stopped(BaseException):
    """Work ended at a safe point because it was asked to; the same unit goes on from there when it runs again.

    Like KeyboardInterrupt no ``Exception``: nothing may take it for a failure.
    """


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
