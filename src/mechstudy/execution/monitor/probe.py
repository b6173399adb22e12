"""One look at what this process, its children and the machine have used so far. What cannot be read is None."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil

from mechstudy.core import cgroup
from mechstudy.core.memory import available_memory_bytes
from mechstudy.execution.monitor.gpu import GpuProbe
from mechstudy.usage.record import GpuSample, Sample

T = TypeVar("T")
_PRESSURE = Path("/proc/pressure")
_CHILDREN_EVERY = 5.0  # seconds between looks for new children: on a full login node a look costs 100 ms
_CHILDREN_SHARE = 500  # and so many times what a look took


class Probe:
    """Counts from when it was made.

    ``clock`` is in seconds. Children are found every few seconds; what a child has used is in its parent's counters
    once it has ended, so that only memory is missed of one that comes and goes between two looks.
    """

    def __init__(self, gpus: GpuProbe | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gpus = gpus
        self._process = psutil.Process()
        self._children: list[psutil.Process] = []
        self._look_at = float("-inf")
        self._cpu = 0.0
        self._busy = [0.0] * (gpus.n if gpus is not None else 0)
        self._joules: list[float | None] = [0.0] * len(self._busy)
        self._start: Sample | None = None
        self._began = self._last = clock()
        self._start = self._counters(0.0)

    def read(self) -> Sample:
        """What was used since the probe was made."""
        now = self._clock()
        sample, start = self._counters(now - self._began), self._start
        assert start is not None
        self._cpu = max(self._cpu, sample.cpu - start.cpu)
        counted: dict[str, Any] = {
            name: _since(getattr(sample, name), getattr(start, name))
            for name in ("read", "write", "machine_cpu", "swap", "wait_cpu", "wait_io", "wait_memory", "throttled")
        }
        gpus = self._gpu_samples(now - self._last)
        self._last = now
        rounded: dict[str, Any] = {name: round(v, 4) if isinstance(v, float) else v for name, v in counted.items()}
        return replace(sample, t=round(sample.t, 3), cpu=round(self._cpu, 3), gpus=gpus, **rounded)

    def _counters(self, t: float) -> Sample:
        cpu, rss = 0.0, 0
        read: int | None = None
        write: int | None = None
        for process in self._tree():
            with suppress(psutil.Error, OSError), process.oneshot():
                times = process.cpu_times()
                cpu += times.user + times.system + times.children_user + times.children_system
                rss += process.memory_info().rss
            with suppress(psutil.Error, OSError, AttributeError):  # others' are not to be read, nor macOS'
                io = process.io_counters()
                read, write = (read or 0) + io.read_bytes, (write or 0) + io.write_bytes
        return Sample(
            t, cpu, rss, read, write, _try(_machine_cpu), _try(_swap), _try(available_memory_bytes),
            _pressure("cpu"), _pressure("io"), _pressure("memory"), _try(cgroup.throttled_seconds),
        )  # fmt: skip

    def _tree(self) -> list[psutil.Process]:
        if self._clock() >= self._look_at:
            began = time.perf_counter()
            with suppress(psutil.Error, OSError):
                self._children = self._process.children(recursive=True)
            took = time.perf_counter() - began
            self._look_at = self._clock() + max(_CHILDREN_EVERY, _CHILDREN_SHARE * took)
        return [self._process, *self._children]

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


def _machine_cpu() -> float:
    """CPU seconds of all cores, but idle ones and those that wait for a disk."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _swap() -> int:
    found = psutil.swap_memory()
    return int(found.sin + found.sout)


def _pressure(what: str) -> float | None:
    """Seconds so far in which some process waited for it."""
    with suppress(OSError, ValueError, IndexError):
        for line in (_PRESSURE / what).read_text().splitlines():
            if line.startswith("some"):
                return int(line.rpartition("total=")[2]) / 1e6
    return None


def _try(read: Callable[[], T]) -> T | None:
    with suppress(psutil.Error, OSError, ValueError, AttributeError, RuntimeError):
        return read()
    return None


def _since(now: float | None, before: float | None) -> float | None:
    """The growth of a counter; never less than nothing, where a machine counts backwards."""
    return None if now is None or before is None else max(type(now)(0), now - before)
