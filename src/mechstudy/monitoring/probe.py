"""One look at what this process, its children and the machine have used so far. What cannot be read is None."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from mechstudy.monitoring.gpu import GpuProbe
from mechstudy.monitoring.proc import PROC, Machine, MachineFiles, ProcessTree, Used
from mechstudy.monitoring.record import GpuSample, Sample


class Tree(Protocol):
    """Counters of this process and its children."""

    def used(self) -> Used: ...

    def close(self) -> None: ...


class WholeMachine(Protocol):
    """Counters of the machine."""

    def read(self) -> Machine: ...

    def close(self) -> None: ...


class Probe:
    """Counts from when it was made; closed when no more is read.

    ``clock`` is in seconds. Children are found every few seconds; what a child has used is in its parent's counters
    once it has ended, so that only memory is missed of one that comes and goes between two looks.
    """

    def __init__(self, gpus: GpuProbe | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gpus = gpus
        self._tree, self._machine = _counters(clock)
        self._cpu = 0.0
        self._busy = [0.0] * (gpus.n if gpus is not None else 0)
        self._joules: list[float | None] = [0.0] * len(self._busy)
        self._began = self._last = clock()
        self._used, self._found = self._tree.used(), self._machine.read()

    def read(self) -> Sample:
        """What was used since the probe was made."""
        now = self._clock()
        used, found = self._tree.used(), self._machine.read()
        self._cpu = max(self._cpu, used.cpu - self._used.cpu)
        grown: dict[str, Any] = {
            name: _since(value, before)
            for name, value, before in zip(Machine._fields, found, self._found, strict=True)
            if name != "available"
        }
        gpus = self._gpu_samples(now - self._last)
        self._last = now
        return Sample(
            t=round(now - self._began, 3),
            cpu=round(self._cpu, 3),
            rss=used.rss,
            read=_since(used.read, self._used.read),
            write=_since(used.write, self._used.write),
            available=found.available,
            gpus=gpus,
            **grown,
        )

    def close(self) -> None:
        self._tree.close()
        self._machine.close()

    def _gpu_samples(self, seconds: float) -> tuple[GpuSample, ...]:
        """Rates as amounts: what NVML says now is taken for all of the time since the sample before."""
        if self._gpus is None:
            return ()
        found = []
        for i, state in enumerate(self._gpus.read()):
            self._busy[i] += state.busy * seconds
            before = self._joules[i]
            self._joules[i] = None if state.watts is None or before is None else before + state.watts * seconds
            joules = self._joules[i]
            found.append(GpuSample(round(self._busy[i], 4), state.memory, None if joules is None else round(joules, 1)))
        return tuple(found)


def _counters(clock: Callable[[], float]) -> tuple[Tree, WholeMachine]:
    if (PROC / "self/stat").exists():
        return ProcessTree(clock), MachineFiles()
    from mechstudy.monitoring.portable import PortableMachine, PortableTree

    return PortableTree(clock), PortableMachine()


def _since(now: float | None, before: float | None) -> Any:
    """The growth of a counter; never less than nothing, where a machine counts backwards."""
    if now is None or before is None:
        return None
    grown = max(type(now)(0), now - before)
    return round(grown, 4) if isinstance(grown, float) else grown
