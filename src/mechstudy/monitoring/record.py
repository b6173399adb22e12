"""``<artifact>.usage.jsonl``: what a unit used of the machine, beside its artifact and never in it.

One JSON object a line. A line with ``session`` begins one process's work on the unit and describes its machine; the
lines after it are samples. Amounts (CPU seconds, bytes, stalls) count from the session's start, so that a file without
every other sample has lost resolution but no amount.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

USAGE_SUFFIX = ".usage.jsonl"
MOST_SAMPLES = 2000  # in one file
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Gpu:
    """A GPU at the start of a session."""

    name: str = ""
    memory_bytes: int = 0
    power_limit_watts: float | None = None


@dataclass(frozen=True)
class GpuSample:
    """One GPU at one time, all its users. ``busy`` (seconds with a kernel running) and ``joules`` are amounts."""

    busy: float = 0.0
    memory: int = 0
    joules: float | None = None


@dataclass(frozen=True)
class Sample:
    """What was used until ``t`` seconds after the session's start. None: cannot be read here.

    Of the unit's process and its children: ``cpu`` seconds, ``rss`` bytes (the largest since the last sample), ``read``
    and ``write`` bytes of disk. Of the machine: ``machine_cpu`` seconds, ``swap`` bytes in and out, ``available`` bytes
    of memory (the least, within the cgroup's limit), and the seconds in which some process waited for ``wait_cpu``,
    ``wait_io`` or ``wait_memory`` (Linux's pressure stall information). ``throttled``: seconds in which the cgroup's
    CPU quota was used up. ``own``: CPU seconds of the sampler itself.
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
        """The fields that could be read."""
        fields: dict[str, Any] = _SAMPLE.dump_python(self, exclude_none=True)
        return fields if self.gpus else {name: value for name, value in fields.items() if name != "gpus"}


@dataclass(frozen=True)
class Session:
    """One process's work on a unit: its machine, the cores it was given, and the samples taken."""

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
    expected: tuple[float, float] | None = None  # per cent: the busy range that the study expects, where it sets one
    gpus: tuple[Gpu, ...] = ()
    samples: list[Sample] = field(default_factory=list)

    def head(self) -> dict[str, Any]:
        """The line that begins the session."""
        return {"session": 1, **_SESSION.dump_python(self, exclude={"samples"})}

    def thinned(self) -> Session:
        """With every other sample, each standing for two; the last sample stays."""
        rest = self.samples[-1:] if len(self.samples) % 2 else []
        pairs = zip(self.samples[::2], self.samples[1::2], strict=False)
        return replace(self, seconds=2 * self.seconds, samples=[*(_merged(*pair) for pair in pairs), *rest])


_SAMPLE, _SESSION = TypeAdapter(Sample), TypeAdapter(Session)


def usage_file(artifact: Path) -> Path:
    """The file beside an artifact's folder, finished or partial."""
    return artifact.with_name(artifact.name.removesuffix(_PARTIAL) + USAGE_SUFFIX)


def read_usage(file: Path) -> list[Session]:
    """Every session of a file, oldest first; truncated lines are skipped. Empty where there is no file."""
    sessions: list[Session] = []
    with suppress(OSError, UnicodeDecodeError):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError):
                content = json.loads(line)
                if "session" in content:
                    sessions.append(_SESSION.validate_python({**content, "samples": []}))
                elif sessions:
                    sessions[-1].samples.append(_SAMPLE.validate_python(content))
    return sessions


def usages_below(artifacts: Path) -> dict[Path, list[Session]]:
    """File -> its sessions, of every unit below a run's ``artifacts``, sorted by phase and name."""
    usages = {file: read_usage(file) for file in sorted(artifacts.glob(f"*/*{USAGE_SUFFIX}"))}
    return {file: sessions for file, sessions in usages.items() if sessions}


def json_line(content: dict[str, Any]) -> str:
    """One line of a usage file."""
    return json.dumps(content, separators=(",", ":")) + "\n"


def to_lines(sessions: Sequence[Session]) -> str:
    """The text of a usage file."""
    return "".join(
        json_line(content)
        for session in sessions
        for content in (session.head(), *(sample.as_json() for sample in session.samples))
    )


def _merged(first: Sample, second: Sample) -> Sample:
    """The later sample, with the extremes of both."""
    available = [sample.available for sample in (first, second) if sample.available is not None]
    pairs = zip(first.gpus, second.gpus, strict=False)
    gpus = tuple(replace(later, memory=max(earlier.memory, later.memory)) for earlier, later in pairs) or second.gpus
    return replace(second, rss=max(first.rss, second.rss), available=min(available, default=None), gpus=gpus)
