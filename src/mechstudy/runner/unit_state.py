"""`<run>/units/<unit>.json`: what a unit that runs as a job is doing, and each attempt at it. The worker writes it.

Beside the artifacts, never in them. It explains; whether a unit is done is for the artifact itself to say.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.runner.resume_progress import Saved
from mechstudy.store.manifest import slug

UNITS = "units"
_PLAIN = re.compile(r"[A-Za-z0-9_.]+(\[[A-Za-z0-9_.]+\])?")
State = Literal["running", "done", "failed", "stopped", "saved"]
D = TypeVar("D")


@dataclass
class Attempt:
    """One process that worked on a unit. ``submission`` and ``job`` are of Slurm; ``before`` and ``after`` say what
    was saved as it began and as it ended; ``exit_code`` is None while it runs, or where it ended unnoticed."""

    submission: int
    job: str
    host: str
    pid: int
    started: str
    before: Saved = field(default_factory=Saved)
    after: Saved | None = None
    ended: str | None = None
    exit_code: int | None = None

    @property
    def got_on(self) -> bool:
        """Whether it saved anything; a process that ended unnoticed is not counted against its unit."""
        return self.after is None or self.after.beyond(self.before)


@dataclass
class UnitState:
    """``state``: running, done, failed, stopped (by a gate), or saved (ended early, to go on from a checkpoint)."""

    unit: str
    state: State = "running"
    reason: str | None = None
    fix: str | None = None
    error: str | None = None  # in full
    seconds: float | None = None
    artifact: str | None = None
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    def of_submission(self, number: int) -> list[Attempt]:
        """The attempts of one submission: the first one and its restarts."""
        return [attempt for attempt in self.attempts if attempt.submission == number]

    def futile(self, number: int) -> int:
        """How many attempts of a submission, the last ones in a row, saved nothing."""
        count = 0
        for attempt in reversed(self.of_submission(number)):
            if attempt.got_on:
                break
            count += 1
        return count


def file_name(unit: str) -> str:
    """A file name of one unit alone: ``train[12]`` -> ``train-12``; others get some letters of a digest too."""
    name = slug(unit)
    if _PLAIN.fullmatch(unit) and len(unit) <= 80:
        return name
    return f"{name[:64]}-{hashlib.sha256(unit.encode()).hexdigest()[:8]}"


def state_file(run: Path, unit: str) -> Path:
    """Where a unit's state is kept."""
    return run / UNITS / f"{file_name(unit)}.json"


def read_state(run: Path, unit: str) -> UnitState | None:
    """A unit's state, or None where it has never run as a job, or the file is not whole."""
    return _read(state_file(run, unit))


def read_states(run: Path) -> dict[str, UnitState]:
    """unit -> its state, of every unit that has run as a job."""
    found: dict[str, UnitState] = {}
    with suppress(OSError):
        for file in (run / UNITS).glob("*.json"):
            if (state := _read(file)) is not None:
                found[state.unit] = state
    return found


def _read(file: Path) -> UnitState | None:
    with suppress(MechstudyError, TypeError, ValueError, KeyError):
        found = read_json(file)
        attempts = [_attempt(item) for item in found.pop("attempts")]
        return _known(UnitState, {**found, "attempts": attempts})
    return None


def write_state(run: Path, state: UnitState) -> None:
    """Writes a unit's state. Whoever calls it holds the unit's lock, or runs after whoever held it."""
    write_json_atomic(state_file(run, state.unit), {**asdict(state), "updated": now()})


def new_attempt(submission: int, before: Saved) -> Attempt:
    """An attempt by this process."""
    return Attempt(submission, slurm_job(), platform.node(), os.getpid(), now(), before)


def slurm_job(environment: Mapping[str, str] = os.environ) -> str:
    """The job this process runs in, ``12_3`` for an element of an array; empty where it runs in none."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")


def now() -> str:
    """UTC, for people to read; nothing is decided by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _attempt(item: dict[str, Any]) -> Attempt:
    after = item.get("after")
    return _known(
        Attempt, {**item, "before": Saved(**item["before"]), "after": None if after is None else Saved(**after)}
    )


def _known(cls: type[D], values: Mapping[str, Any]) -> D:
    """The dataclass of the values it knows, so that files of other versions are read too."""
    names = {item.name for item in fields(cls)}  # type: ignore[arg-type]  # D is a dataclass
    return cls(**{name: value for name, value in values.items() if name in names})
