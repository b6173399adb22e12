"""Summaries of usage samples over sessions, units and phases, and their course over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mechstudy.monitoring.record import Sample, Session

SHORT = 5.0  # seconds; shorter work is mostly start and end, and is not judged


@dataclass(frozen=True)
class Use:
    """The use of the machine in some seconds of work.

    Shares are of time: ``cpu`` of the unit's threads, ``gpu`` of the GPUs (None without), ``machine`` of all cores
    of the machine, ``others`` of it by other processes, ``wait_*`` of the seconds with a process waiting,
    ``throttled`` of the seconds with the quota used up. ``cores`` is CPU seconds per second. Bytes are sums, peaks
    for ``rss`` and ``gpu_memory``, the least for ``available``. None: not measured.
    """

    seconds: float
    threads: float
    parallel: int
    machine_cores: int
    usable: float
    memory_bytes: int
    cores: float
    rss: int
    own: float
    read: int | None = None
    write: int | None = None
    machine: float | None = None
    swap: int | None = None
    available: int | None = None
    wait_cpu: float | None = None
    wait_io: float | None = None
    wait_memory: float | None = None
    throttled: float | None = None
    gpu: float | None = None
    gpu_memory: int | None = None
    gpu_memory_bytes: int | None = None
    watts: float | None = None
    sessions: int = 1
    hosts: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def cpu(self) -> float:
        """The share of time in which the unit's threads were busy."""
        return self.cores / self.threads if self.threads else 0.0

    @property
    def others(self) -> float | None:
        """The share of the machine that other processes used."""
        return None if self.machine is None else max(0.0, self.machine - self.cores / self.machine_cores)

    @property
    def busy(self) -> float:
        """The share compared with the expected range: of the GPU where it ran on one, else of its threads."""
        return self.gpu if self.gpu is not None else self.cpu

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU was used."""
        return self.gpu is not None

    @property
    def read_rate(self) -> float | None:
        """Bytes read per second."""
        return None if self.read is None else self.read / self.seconds

    @property
    def write_rate(self) -> float | None:
        """Bytes written per second."""
        return None if self.write is None else self.write / self.seconds


def use_of(sessions: Iterable[Session]) -> Use | None:
    """All of these sessions together; None where nothing was sampled.

    Amounts are summed and divided by the summed time, so that a long session counts for more than a short one.
    """
    sampled = [session for session in sessions if session.samples and session.samples[-1].t > 0]
    ends = [session.samples[-1] for session in sampled]
    seconds = sum(end.t for end in ends)
    if not seconds:
        return None

    def amount(name: str) -> Any:
        values = [value for end in ends if (value := getattr(end, name)) is not None]
        return sum(values) if values else None

    def share(name: str) -> Any:
        return None if (total := amount(name)) is None else total / seconds

    samples = [sample for session in sampled for sample in session.samples]
    machine_cores = max(session.cores for session in sampled)
    machine, last = share("machine_cpu"), sampled[-1]
    return Use(
        seconds=seconds,
        threads=sum(session.threads * session.samples[-1].t for session in sampled) / seconds,
        parallel=last.parallel,
        machine_cores=machine_cores,
        usable=last.usable,
        memory_bytes=last.memory_bytes,
        cores=amount("cpu") / seconds,
        rss=max(sample.rss for sample in samples),
        own=amount("own"),
        machine=None if machine is None else min(1.0, machine / machine_cores),
        available=min((sample.available for sample in samples if sample.available is not None), default=None),
        **{name: amount(name) for name in ("read", "write", "swap")},
        **{name: share(name) for name in ("wait_cpu", "wait_io", "wait_memory", "throttled")},
        **_gpu([session for session in sampled if session.gpus and session.samples[-1].gpus]),
        sessions=len(sampled),
        hosts=tuple(dict.fromkeys(session.host for session in sampled)),
        device=last.device,
    )


def _gpu(sessions: Sequence[Session]) -> dict[str, Any]:
    """Means over the GPUs of the sessions that used some."""
    if not sessions:
        return {}
    time = sum(session.samples[-1].t * len(session.samples[-1].gpus) for session in sessions)
    ends = [gpu for session in sessions for gpu in session.samples[-1].gpus]
    joules = [gpu.joules for gpu in ends if gpu.joules is not None]
    return {
        "gpu": min(1.0, sum(gpu.busy for gpu in ends) / time),
        "gpu_memory": max(gpu.memory for session in sessions for sample in session.samples for gpu in sample.gpus),
        "gpu_memory_bytes": max(gpu.memory_bytes for session in sessions for gpu in session.gpus),
        "watts": sum(joules) / time if len(joules) == len(ends) else None,
    }


@dataclass(frozen=True)
class Point:
    """The mean over one interval that ended ``t`` seconds after the unit's first session began, and its peak memory."""

    t: float
    busy: float
    rss: int


def points(sessions: Iterable[Session], most: int = 240) -> list[Point]:
    """The course over all sessions, end to end, in at most ``most`` intervals of about equal length."""
    sampled = [session for session in sessions if session.samples]
    step, offset = sum(session.samples[-1].t for session in sampled) / most, 0.0
    course: list[Point] = []
    for session in sampled:
        before, rss = Sample(0.0), 0
        for sample in session.samples:
            rss = max(rss, sample.rss)
            seconds = sample.t - before.t
            if seconds <= 0 or (seconds < step and sample is not session.samples[-1]):
                continue
            busy = (sample.cpu - before.cpu) / seconds / session.threads
            if sample.gpus:
                kernels = sum(gpu.busy for gpu in sample.gpus) - sum(gpu.busy for gpu in before.gpus)
                busy = kernels / seconds / len(sample.gpus)
            course.append(Point(offset + sample.t, busy, rss))
            before, rss = sample, 0
        offset += session.samples[-1].t
    return course
