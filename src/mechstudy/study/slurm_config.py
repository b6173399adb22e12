"""`compute.slurm`: the resources and options of a study's Slurm jobs. Not part of any artifact's id.

Every value becomes part of a line of a batch script, so each is checked for its form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError
from mechstudy.study.phases import registry

_MEGABYTES = {"": 1, "K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")
_OURS = (
    "array", "chdir", "comment", "dependency", "error", "input", "job-name", "kill-on-invalid-dep", "no-requeue",
    "open-mode", "output", "parsable", "requeue", "signal", "test-only", "wait", "wrap",
)  # fmt: skip
_FIELDS = {
    "partition": "partition", "account": "account", "qos": "qos", "gpus": "gpus", "gres": "gpus", "mem": "memory",
    "cpus-per-task": "cpus", "time": "time",
}  # fmt: skip


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.,+@=/:-]+", value):
        raise MechstudyError(f"{value!r} cannot be a name in Slurm", fix="letters, digits and _ . , + @ = / : -")
    return value


def _line(value: str) -> str:
    if not value.strip() or any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise MechstudyError("must be one line of text", fix="one item of the list per line")
    return value.strip()


def _memory(value: str | int) -> str:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([KMGT])B?)?", str(value), re.IGNORECASE)
    if match is None:
        raise MechstudyError(
            f"{value!r} is not an amount of memory for Slurm", fix="for example 32G, or 0 for a whole node"
        )
    number, unit = match[1], (match[2] or "").upper()
    if "." not in number:
        return number + unit
    return f"{math.ceil(float(number) * _MEGABYTES[unit])}M"  # Slurm takes whole numbers only


def _gpus(value: str | int) -> str:
    if not re.fullmatch(r"([A-Za-z0-9_.-]+:)?\d+", str(value)):
        raise MechstudyError(f"{value!r} is not a number of GPUs", fix="a number, or a kind and a number: a100:2")
    return str(value)


def _time(value: str | int) -> str:
    seconds(str(value))
    return str(value)


def seconds(time: str) -> int:
    """Seconds of a Slurm time: minutes, ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM`` or ``D-HH:MM:SS``.

    Raises:
        MechstudyError: it has none of these forms, or is zero.
    """
    match = _TIME.fullmatch(time)
    if match is not None:
        days, *rest = match.groups()
        parts = [int(part) for part in rest if part is not None]
        units = {1: (60,), 2: (60, 1)}.get(len(parts), (3600, 60, 1)) if days is None else (3600, 60, 1)
        total = 86400 * int(days or 0) + sum(a * b for a, b in zip(parts, units, strict=False))
        if total:
            return total
    raise MechstudyError(f"{time!r} is not a time limit", fix="minutes, HH:MM:SS, or D-HH:MM:SS, for example 04:00:00")


def _extra(lines: tuple[str, ...]) -> tuple[str, ...]:
    for line in lines:
        match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:[= ]\S.*)?", line)
        if match is None:
            raise MechstudyError(f"{line!r} is not an option of sbatch", fix="for example --constraint=a100")
        if match[1] in ("cluster", "clusters"):
            raise MechstudyError(
                f"--{match[1]}: jobs of another cluster cannot be followed from here",
                fix="submit on a login node of that cluster",
            )
        if match[1] in _OURS:
            raise MechstudyError(f"--{match[1]} is set by mechstudy itself", fix="leave it out")
        if match[1] in _FIELDS:
            raise MechstudyError(f"--{match[1]} has a field of its own", fix=f"set slurm.{_FIELDS[match[1]]}")
    return lines


Name = Annotated[str, AfterValidator(_name)]
Line = Annotated[str, AfterValidator(_line)]
Memory = Annotated[str | int | float, AfterValidator(_memory)]
Gpus = Annotated[str | int, AfterValidator(_gpus)]
Time = Annotated[str | int, AfterValidator(_time)]
Extra = Annotated[tuple[Line, ...], AfterValidator(_extra)]


class _Request(Config):
    """Resources of a job; unset fields are left to the cluster, or to the values of all phases."""

    partition: Name | None = None
    """Partition of the jobs."""
    qos: Name | None = None
    """Quality of service."""
    gpus: Gpus | None = None
    """A number, or a kind and a number (`a100:2`); with several, a unit runs one process on each."""
    cpus: int | None = Field(None, ge=1)
    """CPU cores of a job."""
    memory: Memory | None = None
    """Memory of a job, such as `64G`; 0 for a whole node's."""
    time: Time | None = None
    """Time limit of a job: minutes, `HH:MM:SS` or `D-HH:MM:SS`."""
    concurrent: int | None = Field(None, ge=1)
    """Units of an array that run at once; without it all."""


class PhaseSlurm(_Request):
    """Resources of one phase's jobs; unset fields have the values of all phases."""

    extra: Extra | None = None
    """More options of sbatch, such as `--constraint=a100`."""


class SlurmConfig(_Request):
    """Resources of jobs, and the set-up of their environment (docs/how-to/slurm.md)."""

    account: Name | None = None
    """Account that is charged."""
    modules: tuple[Name, ...] = ()
    """Modules to load, in their order."""
    activate: Line | None = None
    """Folder of a virtual environment, or a line for the shell; without it the Python that submitted."""
    extra: Extra = ()
    """More options of sbatch, such as `--constraint=a100`."""
    max_restarts: int = Field(20, ge=0)
    """How often a job is requeued, at most, and only while it advances."""
    requeue: bool = True
    """false where the site forbids requeueing: another job is submitted in its place."""
    signal_lead: int = Field(300, ge=10)
    """Seconds before its time limit at which a job saves its progress."""
    phases: Mapping[str, PhaseSlurm] = {}
    """Values of single phases: `{train: {time: 12:00:00}}`."""

    @field_validator("phases")
    @classmethod
    def _known(cls, value: Mapping[str, PhaseSlurm]) -> Mapping[str, PhaseSlurm]:
        for name in value:
            registry.check_name(name)
        return value

    @property
    def lead(self) -> int:
        """Seconds before its limit at which a job is signalled: `signal_lead`, or less for short limits."""
        if self.time is None:
            return self.signal_lead
        return max(10, min(self.signal_lead, 2 * seconds(str(self.time)) // 3))

    def of_phase(self, phase: str) -> SlurmConfig:
        """The values of a phase's jobs: its own where set, else those of all phases."""
        own = self.phases.get(phase)
        if own is None:
            return self
        return self.model_copy(update={k: v for k, v in own if v is not None})

    def over(self, profile: SlurmConfig) -> SlurmConfig:
        """A profile with the fields set here replaced, inside ``phases`` too."""
        explicit: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set if name != "phases"}
        phases = dict(profile.phases)
        for name, own in self.phases.items():
            before = phases.get(name, PhaseSlurm())
            phases[name] = before.model_copy(update={field: getattr(own, field) for field in own.model_fields_set})
        return profile.model_copy(update={**explicit, "phases": phases})
