"""Samples as a few numbers: of a session, of a unit over all its sessions, of a phase over all its units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mechstudy.monitoring.record import Sample, Session

SHORT = 5.0  # seconds; what took less is mostly start and end, and is not judged


@dataclass(frozen=True)
class Use:
    """What was used in some seconds of work.

    Shares are of time: ``cpu`` of the threads given, ``gpu`` of the GPUs (None without), ``machine`` of all cores
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
        return self.cores / self.threads if self.threads else 0.0

    @property
    def others(self) -> float | None:
        return None if self.machine is None else max(0.0, self.machine - self.cores / self.machine_cores)

    @property
    def busy(self) -> float:
        """The share that is held against the expected range: of the GPU where it ran on one, else of its threads."""
        return self.gpu if self.gpu is not None else self.cpu

    @property
    def on_gpu(self) -> bool:
        return self.gpu is not None

    @property
    def read_rate(self) -> float | None:
        return None if self.read is None else self.read / self.seconds

    @property
    def write_rate(self) -> float | None:
        return None if self.write is None else self.write / self.seconds


def use_of(sessions: Iterable[Session]) -> Use | None:
    """All of these sessions together; None where nothing was sampled.

    Amounts are summed and divided by the summed time, so that a long session counts for more than a short one.
    """
    held = [session for session in sessions if session.samples and session.samples[-1].t > 0]
    seconds = sum(session.samples[-1].t for session in held)
    if not seconds:
        return None

    def amount(of: Callable[[Sample], float | None]) -> float | None:
        found = [value for session in held if (value := of(session.samples[-1])) is not None]
        return sum(found) if found else None

    def share(of: Callable[[Sample], float | None]) -> float | None:
        total = amount(of)
        return None if total is None else total / seconds

    def whole(value: float | None) -> int | None:
        return None if value is None else int(value)

    machine_cores = max(session.cores for session in held)
    available = [sample.available for session in held for sample in session.samples if sample.available is not None]
    machine = share(lambda sample: sample.machine_cpu)
    gpus = [session for session in held if session.gpus and session.samples[-1].gpus]
    last = held[-1]
    return Use(
        seconds=seconds,
        threads=sum(session.threads * session.samples[-1].t for session in held) / seconds,
        parallel=last.parallel,
        machine_cores=machine_cores,
        usable=last.usable,
        memory_bytes=last.memory_bytes,
        cores=(amount(lambda sample: sample.cpu) or 0.0) / seconds,
        rss=max(sample.rss for session in held for sample in session.samples),
        own=amount(lambda sample: sample.own) or 0.0,
        read=whole(amount(lambda sample: sample.read)),
        write=whole(amount(lambda sample: sample.write)),
        machine=None if machine is None else min(1.0, machine / machine_cores),
        swap=whole(amount(lambda sample: sample.swap)),
        available=min(available, default=None),
        wait_cpu=share(lambda sample: sample.wait_cpu),
        wait_io=share(lambda sample: sample.wait_io),
        wait_memory=share(lambda sample: sample.wait_memory),
        throttled=share(lambda sample: sample.throttled),
        **_gpu(gpus),
        sessions=len(held),
        hosts=tuple(dict.fromkeys(session.host for session in held)),
        device=last.device,
    )


def _gpu(sessions: Sequence[Session]) -> dict[str, Any]:
    """Means over the GPUs of the sessions that had some."""
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
    """The mean over one interval that ended ``t`` seconds after the unit's first session began to work."""

    t: float
    busy: float
    cores: float
    rss: int
    read_rate: float | None
    write_rate: float | None
    gpu_memory: int | None


def points(sessions: Iterable[Session], most: int = 240) -> list[Point]:
    """The course over all sessions, put end to end, in at most so many intervals of about equal length."""
    held = [session for session in sessions if session.samples]
    total = sum(session.samples[-1].t for session in held)
    step, offset, found = total / most if most else 0.0, 0.0, []
    for session in held:
        before = Sample(0.0, gpus=tuple(type(gpu)() for gpu in session.samples[0].gpus))
        rss = gpu_memory = 0
        for number, sample in enumerate(session.samples):
            rss = max(rss, sample.rss)
            gpu_memory = max([gpu_memory, *(gpu.memory for gpu in sample.gpus)])
            last = number + 1 == len(session.samples)
            if sample.t <= before.t or (sample.t - before.t < step and not last):
                continue
            found.append(_point(session, before, sample, offset, rss, gpu_memory))
            before, rss, gpu_memory = sample, 0, 0
        offset += session.samples[-1].t
    return found


def _point(session: Session, before: Sample, sample: Sample, offset: float, rss: int, gpu_memory: int) -> Point:
    seconds = sample.t - before.t
    cores = (sample.cpu - before.cpu) / seconds
    busy = cores / session.threads
    if sample.gpus:
        earlier = sum(gpu.busy for gpu in before.gpus)
        busy = (sum(gpu.busy for gpu in sample.gpus) - earlier) / seconds / len(sample.gpus)

    def rate(now: int | None, then: int | None) -> float | None:
        return None if now is None else (now - (then or 0)) / seconds

    return Point(
        offset + sample.t, busy, cores, rss, rate(sample.read, before.read), rate(sample.write, before.write),
        gpu_memory if sample.gpus else None,
    )  # fmt: skip
