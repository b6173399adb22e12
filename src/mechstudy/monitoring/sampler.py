"""The sampler: a thread beside a unit that records its use of the machine in a file beside its artifact.

It measures its own cost, and samples less often where that exceeds a small share of the time.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from mechstudy.core.files import atomic_path
from mechstudy.machine import cgroup
from mechstudy.machine.memory import memory_limit_bytes
from mechstudy.monitoring.gpu import GpuProbe, gpu_probe
from mechstudy.monitoring.proc import MachineCounters, ProcessTree
from mechstudy.monitoring.record import MOST_SAMPLES, Sample, Session, json_line, read_usage, to_lines

_WRITE_EVERY = 15.0  # seconds that a killed process may lose
_SHARE = 0.002  # of the time, that samples may take in CPU seconds
_SLOWEST = 5.0  # seconds between samples of a long unit,
_SLOWER = 60.0  # which is this share of the time it has run so far


class Probe:
    """One sample of what this process, its children, the machine and its GPUs have used since its creation.

    ``clock`` is in seconds. Children are searched for every few seconds; what a child used is in its parent's counters
    once it has ended, so that only the memory of one that starts and ends between two searches is missed. Close it
    when no more is read.
    """

    def __init__(self, gpus: GpuProbe | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._gpus = clock, gpus
        self._tree, self._machine = ProcessTree(clock), MachineCounters()
        self._began = self._last = clock()
        self._before, self._cpu = self._counters(), 0.0

    def read(self) -> Sample:
        """What was used since the probe was created."""
        now, counters = self._clock(), self._counters()
        grown = {name: _since(value, self._before[name]) for name, value in counters.items()}
        self._cpu = max(self._cpu, round(grown["cpu"], 3))
        gpus = () if self._gpus is None else self._gpus.read(now - self._last)
        self._last = now
        as_is = {name: counters[name] for name in ("rss", "available")}
        return Sample(t=round(now - self._began, 3), gpus=gpus, **{**grown, **as_is, "cpu": self._cpu})

    def close(self) -> None:
        """Closes the files that it reads."""
        self._tree.close()
        self._machine.close()

    def _counters(self) -> dict[str, Any]:
        return {**self._tree.used()._asdict(), **self._machine.read()._asdict()}


def _since(now: float | None, before: float | None) -> Any:
    """The growth of a counter; zero where a machine counts backwards."""
    return None if now is None or before is None else round(max(0, now - before), 4)


class UsageLog:
    """The file of one unit: earlier sessions stay, a new one is appended; it never holds more than ``most`` samples.

    When it is full, every other sample is dropped and the next ones are taken half as often.
    """

    def __init__(
        self, file: Path, session: Session, *, resumes: bool, most: int = MOST_SAMPLES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.file, self._most, self._clock = file, most, clock
        self._sessions = read_usage(file) if resumes else []
        interval = max([session.seconds, *(earlier.seconds for earlier in self._sessions)])
        self.session = replace(session, seconds=interval, samples=[])
        self._sessions.append(self.session)
        self._unwritten: list[Sample] = []
        self._rewrite()

    def add(self, sample: Sample) -> None:
        """Keeps a sample, and writes those kept every few seconds."""
        self.session.samples.append(sample)
        self._unwritten.append(sample)
        if self._count() > self._most:
            self._thin()
        elif self._clock() - self._written >= _WRITE_EVERY:
            self.flush()

    def flush(self) -> None:
        """Appends what was not written yet."""
        with self.file.open("a", encoding="utf-8") as opened:
            opened.write("".join(json_line(sample.as_json()) for sample in self._unwritten))
        self._all_written()

    def _count(self) -> int:
        return sum(len(session.samples) for session in self._sessions)

    def _thin(self) -> None:
        self._sessions = [session.thinned() for session in self._sessions]
        while self._count() > self._most and len(self._sessions) > 1:  # many short sessions: the oldest go
            self._sessions.pop(0)
        self.session = self._sessions[-1]
        self._rewrite()

    def _rewrite(self) -> None:
        with atomic_path(self.file) as temporary:
            temporary.write_text(to_lines(self._sessions), encoding="utf-8")
        self._all_written()

    def _all_written(self) -> None:
        self._unwritten.clear()
        self._written = self._clock()


def _take_samples(log: UsageLog, probe: Probe, end: threading.Event, say: Callable[[str], None]) -> None:
    """Takes samples until ``end``, and a last one. An error ends it, and nothing else."""
    seconds, ended = log.session.seconds, False
    try:
        while not ended:
            ended = end.wait(seconds)
            sample = replace(probe.read(), own=round(time.thread_time(), 4))
            log.add(sample)
            seconds = pause(log.session.seconds, sample.t, time.thread_time())
        log.flush()
    except Exception as error:  # a full disk, a process that may not be read
        say(f"usage is no longer recorded: {type(error).__name__}: {error}")
    finally:
        probe.close()


def pause(asked: float, age: float, own: float) -> float:
    """Seconds until the next sample, never fewer than were asked for.

    A unit that has run for a minute is sampled every second, one of five minutes and more every five. Where samples
    have taken more than their share of the time (``own`` CPU seconds of ``age``), the next one waits until they have
    not; so an expensive sample of a thousand processes is not followed by another a second later.
    """
    within_share = own / _SHARE - age
    return max(asked, min(_SLOWEST, age / _SLOWER), within_share)


@contextmanager
def monitored(
    file: Path,
    session: Session,
    *,
    n_ranks: int = 1,
    resumes: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[None]:
    """Records the use of the machine inside the block in ``file``.

    Never raises and never changes what the block does: where usage cannot be recorded, ``say`` gets one message.
    ``session`` describes the unit, its device and threads; the machine is filled in here. ``n_ranks`` processes share
    the unit; with ``resumes``, earlier sessions in the file stay.
    """
    thread: threading.Thread | None = None
    end = threading.Event()
    try:
        gpus = gpu_probe(session.device, n_ranks)
        session = replace(
            session,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            host=platform.node(),
            cores=psutil.cpu_count() or 1,
            usable=cgroup.usable_cores(),
            memory_bytes=memory_limit_bytes(),
            gpus=gpus.describe() if gpus is not None else (),
        )
        work = (UsageLog(file, session, resumes=resumes), Probe(gpus), end, say)
        sampling = threading.Thread(target=_take_samples, args=work, daemon=True, name="usage")
        sampling.start()
        thread = sampling
    except Exception as error:
        say(f"usage is not recorded: {type(error).__name__}: {error}")
    try:
        yield
    finally:
        end.set()
        if thread is not None:
            thread.join(timeout=10)
