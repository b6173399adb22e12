"""The counters of `monitor.proc` where there is no /proc (macOS), through psutil: dearer, and fewer of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from mechstudy.machine.memory import available_memory_bytes
from mechstudy.monitoring.proc import CHILDREN_EVERY, CHILDREN_SHARE, Machine, Used


class PortableTree:
    """This process and its children."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._children: list[psutil.Process] = []
        self._look_at = float("-inf")

    def used(self) -> Used:
        if self._clock() >= self._look_at:
            began = time.perf_counter()
            with suppress(psutil.Error, OSError):
                self._children = self._process.children(recursive=True)
            self._look_at = self._clock() + max(CHILDREN_EVERY, CHILDREN_SHARE * (time.perf_counter() - began))
        cpu, rss = 0.0, 0
        for process in (self._process, *self._children):
            with suppress(psutil.Error, OSError), process.oneshot():
                times = process.cpu_times()
                cpu += times.user + times.system
                cpu += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
                rss += process.memory_info().rss
        return Used(cpu, rss, None, None)

    def close(self) -> None:
        """Nothing is held open."""


class PortableMachine:
    """The machine's counters that psutil knows everywhere."""

    def read(self) -> Machine:
        with suppress(psutil.Error, OSError, RuntimeError):
            times = psutil.cpu_times()
            swap = psutil.swap_memory()
            return Machine(float(sum(times) - times.idle), int(swap.sin + swap.sout), available_memory_bytes())
        return Machine()

    def close(self) -> None:
        """Nothing is held open."""
