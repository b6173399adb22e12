"""The progress that an unfinished unit can resume from; the state of a unit that runs as a job, and its attempts.

``<run>/units/<unit>.json`` explains only: a unit is done when its artifact is there. All is read without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.runner.job import Outcome
from mechstudy.store.artifact_writer import SCRATCH
from mechstudy.store.artifacts import ArtifactStore
from mechstudy.store.manifest import slug
from mechstudy.store.provenance import job_of, this_session
from mechstudy.study.dag import Node
from mechstudy.study.run_folder import RunFolder
from mechstudy.study.unit import Unit

UNITS = "units"
CHECKPOINTED = 75  # exit status of a job that saved its progress and is to run again
_PLAIN = re.compile(r"[A-Za-z0-9_.]+(\[[A-Za-z0-9_.]+\])?")
_LOGS = ("progress.json", "sessions.json", "scalars.jsonl", "timing.json")  # grow although nothing was saved
_CHECKPOINTS = (".safetensors", ".checkpoint")
_TEMPORARY = re.compile(r"\..+\.tmp-\d+")
_STEPS = ("step", "written_rows")
_LARGEST_HEADER = 100 << 20
State = Literal["running", "done", "failed", "stopped", "saved"]


@dataclass(frozen=True)
class Saved:
    """``steps``: of all checkpoints together (training steps, or captured rows); ``items``: files kept beside them."""

    steps: int = 0
    items: int = 0

    def beyond(self, earlier: Saved) -> bool:
        """Whether more is saved than earlier."""
        return self.steps > earlier.steps or (self.steps == earlier.steps and self.items > earlier.items)

    def __str__(self) -> str:
        texts = [f"step {self.steps:,}" if self.steps else "", f"{self.items} files" if self.items else ""]
        return ", ".join(text for text in texts if text) or "nothing"


def saved_of(store: ArtifactStore, node: Node) -> Saved:
    """The saved progress of a unit."""
    return Saved() if node.id is None else saved(store.partial(*node.key))


def saved(partial: Path | None) -> Saved:
    """The saved progress in a unit's partial folder; nothing where there is none."""
    if partial is None:
        return Saved()
    steps = items = 0
    for path in _files(partial):
        if path.suffix in _CHECKPOINTS and SCRATCH in path.relative_to(partial).parts:
            steps += _checkpoint_step(path)
        elif path.name not in _LOGS and "tensorboard" not in path.parts and not _TEMPORARY.fullmatch(path.name):
            items += 1
    return Saved(steps, items)


def _checkpoint_step(path: Path) -> int:
    """The step (or row) a checkpoint was written at, from its header alone; 0 where it says none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        with path.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > _LARGEST_HEADER:
                return 0
            state: dict[str, Any] = json.loads(json.loads(opened.read(length))["__metadata__"]["state"])
        return next((int(state[name]) for name in _STEPS if name in state), 0)
    return 0


def _files(folder: Path) -> Iterator[Path]:
    """Regular files at any depth; what disappears meanwhile is left out."""
    with suppress(OSError):
        for path in folder.rglob("*"):
            with suppress(OSError):
                if path.is_file():
                    yield path


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
        latest = reversed(self.of_submission(number))
        return len(list(takewhile(lambda attempt: not attempt.got_on, latest)))


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
    return job_of(this_session(environment)) or ""


def now() -> str:
    """UTC, for people to read; nothing is decided by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
