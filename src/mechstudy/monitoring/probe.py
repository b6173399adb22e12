"""The probe: one sample of what this process, its children, the machine and its GPUs have used so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mechstudy.monitoring.gpu import GpuProbe
from mechstudy.monitoring.proc import MachineCounters, ProcessTree
from mechstudy.monitoring.record import GpuSample, Sample


class Probe:
    """Counts from its creation on. Close it when no more is read.

    ``clock`` is in seconds. Children are searched for every few seconds; what a child used is in its parent's counters
    once it has ended, so that only the memory of one that starts and ends between two searches is missed.
    """

    def __init__(self, gpus: GpuProbe | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gpus = gpus
        self._tree, self._machine = ProcessTree(clock), MachineCounters()
        self._cpu = 0.0
        self._busy = [0.0] * (gpus.n if gpus is not None else 0)
        self._joules: list[float | None] = [0.0] * len(self._busy)
        self._began = self._last = clock()
        self._used_before, self._machine_before = self._tree.used(), self._machine.read()._asdict()

    def read(self) -> Sample:
        """What was used since the probe was created."""
        now = self._clock()
        used, machine = self._tree.used(), self._machine.read()._asdict()
        self._cpu = max(self._cpu, used.cpu - self._used_before.cpu)
        grown = {name: _since(value, self._machine_before[name]) for name, value in machine.items()}
        gpus = self._gpu_samples(now - self._last)
        self._last = now
        return Sample(
            t=round(now - self._began, 3),
            cpu=round(self._cpu, 3),
            rss=used.rss,
            read=_since(used.read, self._used_before.read),
            write=_since(used.write, self._used_before.write),
            gpus=gpus,
            **{**grown, "available": machine["available"]},
        )

    def close(self) -> None:
        """Closes the files that it reads."""
        self._tree.close()
        self._machine.close()

    def _gpu_samples(self, seconds: float) -> tuple[GpuSample, ...]:
        """Rates as amounts: NVML's present rates are taken for all of the time since the last sample."""
        if self._gpus is None:
            return ()
        samples = []
        for i, state in enumerate(self._gpus.read()):
            self._busy[i] += state.busy * seconds
            before = self._joules[i]
            joules = None if state.watts is None or before is None else before + state.watts * seconds
            self._joules[i] = joules
            joules = None if joules is None else round(joules, 1)
            samples.append(GpuSample(round(self._busy[i], 4), state.memory, joules))
        return tuple(samples)


def _since(now: float | None, before: float | None) -> Any:
    """The growth of a counter; zero where a machine counts backwards."""
    if now is None or before is None:
        return None
    grown = max(type(now)(0), now - before)
    return round(grown, 4) if isinstance(grown, float) else grown
