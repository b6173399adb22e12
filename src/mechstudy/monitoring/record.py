"""`<artifact>.usage.jsonl`: what a unit used of the machine, beside its artifact and never in it.

One JSON object a line. A line with ``session`` begins one process' work on the unit and says where that was; the lines
after it are samples. Amounts (CPU seconds, bytes, stalls) count from the session's start, so that a file of which every
other line was dropped has lost resolution and no amount.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

SUFFIX = ".usage.jsonl"
MOST_SAMPLES = 2000  # in one file
_PARTIAL = ".partial"
D = TypeVar("D")


@dataclass(frozen=True)
class Gpu:
    """A GPU as a session found it."""

    name: str = ""
    memory_bytes: int = 0
    power_limit_watts: float | None = None


@dataclass(frozen=True)
class GpuSample:
    """One GPU at one time. ``busy`` (seconds in which a kernel ran) and ``joules`` are amounts; of all its users."""

    busy: float = 0.0
    memory: int = 0
    joules: float | None = None


@dataclass(frozen=True)
class Sample:
    """What was used until ``t`` seconds after the session's start.

    Of the unit's process and its children: ``cpu`` seconds, ``rss`` bytes (the largest since the sample before),
    ``read`` and ``write`` bytes of disk. Of the machine: ``machine_cpu`` seconds, ``swap`` bytes in and out,
    ``available`` bytes of memory (the least, within the cgroup's limit), and the seconds in which some process waited
    for ``wait_cpu``, ``wait_io`` or ``wait_memory`` (Linux's pressure stall information). ``throttled``: seconds in
    which the cgroup's CPU quota was used up. ``own``: CPU seconds of the sampler itself. None: cannot be read here.
    """

    t: float
    cpu: float = 0.0
    rss: int = 0
    read: int | None = None
    write: int | None = None
    machine_cpu: float | None = None
    swap: int | None = None
    available: int | None = None
    wait_cpu: float | None = None
    wait_io: float | None = None
    wait_memory: float | None = None
    throttled: float | None = None
    own: float = 0.0
    gpus: tuple[GpuSample, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Without what could not be read."""
        found = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "gpus"}
        kept = {name: value for name, value in found.items() if value is not None}
        if self.gpus:
            kept["gpus"] = [{k: v for k, v in vars(gpu).items() if v is not None} for gpu in self.gpus]
        return kept


@dataclass(frozen=True)
class Session:
    """One process' work on a unit: on which machine, with how many of its cores, and the samples taken."""

    unit: str
    phase: str
    started: str = ""
    host: str = ""
    device: str = "cpu"
    threads: int = 1  # given to the unit, all its processes together
    parallel: int = 1  # units that may run beside each other
    cores: int = 1  # of the machine
    usable: float = 1.0  # cores that this process may use: its affinity, and its cgroup's quota
    memory_bytes: int = 0  # of the machine, or of the cgroup where that is less
    seconds: float = 1.0  # between samples
    expected: tuple[float, float] | None = None  # per cent: how busy it is to be, where the study says so
    gpus: tuple[Gpu, ...] = ()
    samples: list[Sample] = field(default_factory=list)

    def head(self) -> dict[str, Any]:
        """The line that begins the session."""
        found = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("samples", "gpus")}
        return {"session": 1, **found, "gpus": [vars(gpu) for gpu in self.gpus]}

    def thinned(self) -> Session:
        """With every other sample, each standing for two: the last and the end are always kept."""
        kept, rest = [], self.samples[-1:] if len(self.samples) % 2 else []
        for first, second in zip(self.samples[::2], self.samples[1::2], strict=False):
            kept.append(_merged(first, second))
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return Session(**{**values, "seconds": 2 * self.seconds, "samples": [*kept, *rest]})


def usage_file(artifact: Path) -> Path:
    """The file beside an artifact's folder, finished or partial."""
    return artifact.with_name(artifact.name.removesuffix(_PARTIAL) + SUFFIX)


def read_usage(file: Path) -> list[Session]:
    """Every session of a file, oldest first; lines that a kill cut short are left out. Empty where there is no file."""
    sessions: list[Session] = []
    with suppress(OSError, UnicodeDecodeError):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError):
                _take(json.loads(line), sessions)
    return sessions


def usages_below(artifacts: Path) -> dict[Path, list[Session]]:
    """File -> its sessions, of every unit below a run's ``artifacts``, sorted by phase and name."""
    found = {file: read_usage(file) for file in sorted(artifacts.glob(f"*/*{SUFFIX}"))}
    return {file: sessions for file, sessions in found.items() if sessions}


def to_lines(sessions: Sequence[Session]) -> str:
    """The whole file."""
    return "".join(
        json.dumps(item, separators=(",", ":")) + "\n"
        for session in sessions
        for item in (session.head(), *(sample.as_json() for sample in session.samples))
    )


def _take(found: Mapping[str, Any], sessions: list[Session]) -> None:
    gpus = found.get("gpus") or ()
    if "session" in found:
        sessions.append(_known(Session, {**found, "gpus": tuple(_known(Gpu, gpu) for gpu in gpus), "samples": []}))
    elif sessions:
        sample = _known(Sample, {**found, "gpus": tuple(_known(GpuSample, gpu) for gpu in gpus)})
        float(sample.t), float(sample.cpu), int(sample.rss)
        sessions[-1].samples.append(sample)


def _known(cls: type[D], values: Mapping[str, Any]) -> D:
    names = {item.name for item in fields(cls)}  # type: ignore[arg-type]  # D is a dataclass
    return cls(**{name: value for name, value in values.items() if name in names})


def _merged(first: Sample, second: Sample) -> Sample:
    """The later sample, with the extremes of both."""
    least = [sample.available for sample in (first, second) if sample.available is not None]
    values = {item.name: getattr(second, item.name) for item in fields(second)}
    gpus = tuple(
        GpuSample(b.busy, max(a.memory, b.memory), b.joules) for a, b in zip(first.gpus, second.gpus, strict=False)
    )
    extremes = {"rss": max(first.rss, second.rss), "available": min(least, default=None), "gpus": gpus or second.gpus}
    return Sample(**{**values, **extremes})
