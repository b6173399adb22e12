"""`<run>/units/<unit>.json`: the state of a unit that runs as a job, and each attempt at it.

It explains only: a unit is done when its artifact is there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.runner.job import Outcome
from mechstudy.runner.resume_progress import Saved
from mechstudy.store.manifest import slug
from mechstudy.study.dag import Node
from mechstudy.study.run_folder import RunFolder
from mechstudy.study.unit import Unit

UNITS = "units"
CHECKPOINTED = 75  # exit status of a job that saved its progress and is to run again
_PLAIN = re.compile(r"[A-Za-z0-9_.]+(\[[A-Za-z0-9_.]+\])?")
State = Literal["running", "done", "failed", "stopped", "saved"]


@dataclass
class Attempt:
    """One process that worked on a unit.

    ``submission`` and ``job`` are Slurm's; ``before`` and ``after`` are the progress saved when it began and ended;
    ``exit_code`` is None while it runs, or where its end was not recorded.
    """

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
        """Whether it saved anything; True where its end was not recorded."""
        return self.after is None or self.after.beyond(self.before)


@dataclass
class UnitState:
    """A unit's state; ``stopped`` is by a gate, ``saved`` ended early with progress to resume from."""

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
        """The latest attempt."""
        return self.attempts[-1] if self.attempts else None

    def of_submission(self, number: int) -> list[Attempt]:
        """The attempts of one submission: the first one and its restarts."""
        return [attempt for attempt in self.attempts if attempt.submission == number]

    def futile(self, number: int) -> int:
        """How many of a submission's latest attempts in a row saved nothing."""
        count = 0
        for attempt in reversed(self.of_submission(number)):
            if attempt.got_on:
                break
            count += 1
        return count


_STATE = TypeAdapter(UnitState)  # fields of other versions are ignored


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
    """Unit -> its state, of every unit that has run as a job."""
    states: dict[str, UnitState] = {}
    with suppress(OSError):
        for file in (run / UNITS).glob("*.json"):
            if (state := _read(file)) is not None:
                states[state.unit] = state
    return states


def _read(file: Path) -> UnitState | None:
    with suppress(MechstudyError, ValueError):
        return _STATE.validate_python(read_json(file))
    return None


def write_state(run: Path, state: UnitState) -> None:
    """Writes a unit's state. The caller holds the unit's lock, or runs after the process that held it."""
    write_json_atomic(state_file(run, state.unit), {**asdict(state), "updated": now()})


class JobRecord:
    """The state of the unit that this job runs, written as it changes (a `Recorder`)."""

    def __init__(self, run: Path, name: str) -> None:
        self.run = run
        self.state = read_state(run, name) or UnitState(name)
        self._attempt: Attempt | None = None

    def begin(self, submission: int, before: Saved) -> None:
        """This process starts an attempt."""
        self._attempt = Attempt(submission, slurm_job(), platform.node(), os.getpid(), now(), before)
        self.state.attempts.append(self._attempt)
        self.state.artifact = None
        self.write("running")

    def stopped(self, node: Node) -> None:
        """A gate stops the unit."""
        self.write("stopped", node.stopped)

    def done(self, node: Node) -> None:
        """The unit has its artifact."""
        assert node.artifact is not None
        self.state.artifact, self.state.seconds = node.artifact.name, node.artifact.manifest.get("seconds")
        self._end(0)
        self.write("done")

    def failed(self, outcome: Outcome) -> None:
        """The unit failed."""
        self._end(outcome.exit_code)
        self.fail(outcome.reason, str(outcome.error or outcome.trace), outcome.error.fix if outcome.error else None)

    def fail(self, reason: str, error: str | None = None, fix: str | None = None) -> None:
        """The unit failed, in or outside of its attempt."""
        self.state.error = error
        self.write("failed", reason, fix)

    def interrupted(self, reason: str, saved: Saved) -> None:
        """The attempt ended early, with its progress saved."""
        self._end(CHECKPOINTED, saved)
        self.write("saved", reason)

    def write(self, state: State, reason: str | None = None, fix: str | None = None) -> None:
        """Writes the state."""
        self.state.state, self.state.reason, self.state.fix = state, reason, fix
        if state != "failed":
            self.state.error = None
        write_state(self.run, self.state)

    def _end(self, code: int, saved: Saved | None = None) -> None:
        if self._attempt is not None:
            self._attempt.ended, self._attempt.exit_code, self._attempt.after = now(), code, saved


def missing_inputs(run: Path, unit: Unit, present: Collection[str]) -> list[dict[str, Any]]:
    """``{name, status, reason}`` of each input without an artifact: failed, stopped or pending.

    Args:
        present: names of the input units that have an artifact.
    """
    names = [name for name in unit.sources if name not in present]
    if not names:
        return []
    progress, states = RunFolder(run).read_progress().get("units", {}), read_states(run)
    return [{"name": name, **_status(progress.get(name, {}), states.get(name))} for name in names]


def _status(progress: Mapping[str, Any], state: UnitState | None) -> dict[str, Any]:
    """What a unit's job recorded, or else the run."""
    if state is not None and state.state in ("failed", "stopped"):
        return {"status": state.state, "reason": state.reason}
    status = progress.get("status")
    return {"status": status if status in ("failed", "stopped") else "pending", "reason": progress.get("reason")}


def slurm_job(environment: Mapping[str, str] = os.environ) -> str:
    """The job this process runs in, ``12_3`` for an element of an array; empty where it runs in none."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")


def now() -> str:
    """UTC, for people to read; nothing is decided by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
