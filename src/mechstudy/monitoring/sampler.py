"""The sampler: a thread beside a unit that writes what it uses, every few seconds, into a file beside its artifact.

It measures what it costs itself, and looks less often where that is more than a small share of the time.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mechstudy.monitoring.record import MOST_SAMPLES, Sample, Session, read_usage, to_lines

_WRITE_EVERY = 15.0  # seconds that a killed process may lose
_SHARE = 0.002  # of the time, that samples may take in CPU seconds
_SLOWEST = 5.0  # seconds between samples of a long unit,
_SLOWER = 60.0  # which is this share of the time it has run so far


class Source(Protocol):
    """What samples come from."""

    def read(self) -> Sample: ...

    def close(self) -> None: ...


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
        self._written = clock()
        self._count = sum(len(earlier.samples) for earlier in self._sessions)
        self._rewrite()

    def add(self, sample: Sample) -> None:
        """Keeps a sample, and writes those kept every few seconds."""
        self.session.samples.append(sample)
        self._unwritten.append(sample)
        self._count += 1
        if self._count > self._most:
            self._thin()
        elif self._clock() - self._written >= _WRITE_EVERY:
            self.flush()

    def flush(self) -> None:
        """Appends what was not written yet."""
        lines = "".join(json.dumps(sample.as_json(), separators=(",", ":")) + "\n" for sample in self._unwritten)
        with self.file.open("a", encoding="utf-8") as opened:
            opened.write(lines)
        self._unwritten.clear()
        self._written = self._clock()

    def _thin(self) -> None:
        self._sessions = [session.thinned() for session in self._sessions]
        self._count = sum(len(session.samples) for session in self._sessions)
        while self._count > self._most and len(self._sessions) > 1:  # many short sessions: the oldest go
            self._count -= len(self._sessions.pop(0).samples)
        self.session = self._sessions[-1]
        self._rewrite()

    def _rewrite(self) -> None:
        temporary = self.file.with_name(f".{self.file.name}.tmp-{os.getpid()}")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(to_lines(self._sessions), encoding="utf-8")
            temporary.replace(self.file)  # not fsynced: after a power cut a unit without usage is no loss
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self._unwritten.clear()
        self._written = self._clock()


class Sampler:
    """Takes samples in a daemon thread until it is stopped. What goes wrong in it ends it, and nothing else."""

    def __init__(self, log: UsageLog, source: Source, say: Callable[[str], None] = lambda _: None) -> None:
        self._log, self._source, self._say = log, source, say
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="usage")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Takes the last sample and ends the thread."""
        self._end.set()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        seconds = self._log.session.seconds
        try:
            while True:
                ended = self._end.wait(seconds)
                sample = replace(self._source.read(), own=round(time.thread_time(), 4))
                self._log.add(sample)
                if ended:
                    self._log.flush()
                    return
                seconds = pause(self._log.session.seconds, sample.t, time.thread_time())
        except Exception as error:  # a full disk, a process that may not be looked at
            self._say(f"usage is no longer recorded: {type(error).__name__}: {error}")
        finally:
            self._source.close()


def pause(asked: float, age: float, own: float) -> float:
    """Seconds until the next sample, never fewer than were asked for.

    A unit that has run for a minute is sampled every second, one of five minutes and more every five. Where samples
    so far took more than their share of the time (``own`` CPU seconds of ``age``), the next one waits until they do
    not; one look at a thousand processes is not followed by another a second later.
    """
    within_share = own / _SHARE - age
    return max(asked, min(_SLOWEST, age / _SLOWER), within_share)


@contextmanager
def monitored(
    file: Path,
    *,
    unit: str,
    phase: str,
    device: str,
    threads: int,
    parallel: int = 1,
    n_ranks: int = 1,
    seconds: float = 1.0,
    expected: Sequence[float] | None = None,
    resumes: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[None]:
    """Writes what is used inside the block to ``file``; with ``resumes`` after what earlier processes wrote.

    Never raises and never changes what the block does: where usage cannot be recorded, ``say`` is told once.

    Args:
        threads: given to the unit, all its ``n_ranks`` processes together.
        parallel: units that run beside each other on this machine.
        seconds: between samples.
        expected: how busy it is to be, in per cent, where that is not as usual.
    """
    sampler = None
    try:
        sampler = _sampler(file, unit, phase, device, threads, parallel, n_ranks, seconds, expected, resumes, say)
        sampler.start()
    except Exception as error:
        say(f"usage is not recorded: {type(error).__name__}: {error}")
    try:
        yield
    finally:
        if sampler is not None:
            with suppress(RuntimeError):
                sampler.stop()


def _sampler(
    file: Path, unit: str, phase: str, device: str, threads: int, parallel: int, n_ranks: int, seconds: float,
    expected: Sequence[float] | None, resumes: bool, say: Callable[[str], None],
) -> Sampler:  # fmt: skip
    import platform

    import psutil

    from mechstudy.machine import cgroup
    from mechstudy.machine.memory import total_memory_bytes
    from mechstudy.monitoring.gpu import gpu_probe
    from mechstudy.monitoring.probe import Probe

    gpus = gpu_probe(device, n_ranks)
    total = total_memory_bytes()
    session = Session(
        unit=unit,
        phase=phase,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        host=platform.node(),
        device=device,
        threads=threads,
        parallel=parallel,
        cores=psutil.cpu_count() or 1,
        usable=cgroup.usable_cores(),
        memory_bytes=min(total, cgroup.memory_limit() or total),
        seconds=seconds,
        expected=None if expected is None else (float(expected[0]), float(expected[1])),
        gpus=gpus.describe() if gpus is not None else (),
    )
    return Sampler(UsageLog(file, session, resumes=resumes), Probe(gpus), say)
