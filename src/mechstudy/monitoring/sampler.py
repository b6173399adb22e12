"""The sampler: a thread beside a unit that records its use of the machine in a file beside its artifact.

It measures its own cost, and samples less often where that exceeds a small share of the time.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mechstudy.core.files import atomic_path
from mechstudy.machine import cgroup
from mechstudy.machine.memory import memory_limit_bytes
from mechstudy.monitoring.gpu import gpu_probe
from mechstudy.monitoring.probe import Probe
from mechstudy.monitoring.record import MOST_SAMPLES, Sample, Session, json_line, read_usage, to_lines

_WRITE_EVERY = 15.0  # seconds that a killed process may lose
_SHARE = 0.002  # of the time, that samples may take in CPU seconds
_SLOWEST = 5.0  # seconds between samples of a long unit,
_SLOWER = 60.0  # which is this share of the time it has run so far


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
        self._count = sum(len(earlier.samples) for earlier in self._sessions)
        self._unwritten: list[Sample] = []
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
        with self.file.open("a", encoding="utf-8") as opened:
            opened.write("".join(json_line(sample.as_json()) for sample in self._unwritten))
        self._all_written()

    def _thin(self) -> None:
        self._sessions = [session.thinned() for session in self._sessions]
        self._count = sum(len(session.samples) for session in self._sessions)
        while self._count > self._most and len(self._sessions) > 1:  # many short sessions: the oldest go
            self._count -= len(self._sessions.pop(0).samples)
        self.session = self._sessions[-1]
        self._rewrite()

    def _rewrite(self) -> None:
        with atomic_path(self.file) as temporary:
            temporary.write_text(to_lines(self._sessions), encoding="utf-8")
        self._all_written()

    def _all_written(self) -> None:
        self._unwritten.clear()
        self._written = self._clock()


class Sampler:
    """Takes samples in a daemon thread until it is stopped. An error in the thread ends it, and nothing else."""

    def __init__(self, log: UsageLog, probe: Probe, say: Callable[[str], None] = lambda _: None) -> None:
        self._log, self._probe, self._say = log, probe, say
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="usage")
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
                sample = replace(self._probe.read(), own=round(time.thread_time(), 4))
                self._log.add(sample)
                if ended:
                    self._log.flush()
                    return
                seconds = pause(self._log.session.seconds, sample.t, time.thread_time())
        except Exception as error:  # a full disk, a process that may not be read
            self._say(f"usage is no longer recorded: {type(error).__name__}: {error}")
        finally:
            self._probe.close()


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
    """Records the use of the machine inside the block in ``file``.

    Never raises and never changes what the block does: where usage cannot be recorded, ``say`` gets one message.

    Args:
        file: the unit's `usage_file`.
        unit: the unit's name.
        phase: the unit's phase.
        device: that the unit runs on.
        threads: given to the unit, all its ``n_ranks`` processes together.
        parallel: units that run beside each other on this machine.
        n_ranks: processes that share the unit.
        seconds: between samples.
        expected: the busy range in per cent, where the study sets one.
        resumes: append to what earlier processes recorded.
        say: takes messages.
    """
    sampler = None
    try:
        gpus = gpu_probe(device, n_ranks)
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
            memory_bytes=memory_limit_bytes(),
            seconds=seconds,
            expected=None if expected is None else (float(expected[0]), float(expected[1])),
            gpus=gpus.describe() if gpus is not None else (),
        )
        sampler = Sampler(UsageLog(file, session, resumes=resumes), Probe(gpus), say)
    except Exception as error:
        say(f"usage is not recorded: {type(error).__name__}: {error}")
    try:
        yield
    finally:
        if sampler is not None:
            sampler.stop()
