"""`<run>/slurm/submission.json`: every job that was submitted for a run, and what happened to it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.runner.slurm.frozen import LOGS, SLURM
from mechstudy.runner.unit_state import now
from mechstudy.store.lock import FileLock

RECORD = "submission.json"
CANCELLED, TAKEN_BACK = "cancelled", "taken back"  # events
SCHEMA = 1


@dataclass(frozen=True)
class SubmittedJob:
    """An array in Slurm: its id, its units, the groups whose jobs it waits for, and its files.

    ``tasks`` maps an element's index to its unit. ``after`` names groups of the same submission; with
    ``takes_what_is_there`` it waits until they end, well or not.
    """

    group: str
    phase: str
    job: str
    tasks: Mapping[int, str]
    after: Sequence[str]
    script: str
    successor_of: str | None = None
    takes_what_is_there: bool = False

    def log(self, run: Path, task: int) -> Path:
        """Where Slurm puts what an element prints."""
        return run / SLURM / LOGS / f"{self.phase}-{self.job}_{task}.log"


@dataclass
class Entry:
    """One `submit` or `resume`, and its jobs. ``cancelled`` says why it was taken back, if it was."""

    number: int
    command: str
    at: str
    file: str
    overrides: list[str]
    profile: str | None
    jobs: list[SubmittedJob] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    cancelled: str | None = None

    def note(self, what: str, **facts: Any) -> None:
        """Appends an event."""
        self.events.append({"at": now(), "what": what, **facts})


class Element(NamedTuple):
    """One element of an array: its submission, its job, its index, and the unit that it runs."""

    entry: Entry
    job: SubmittedJob
    task: int
    unit: str


_HISTORY = TypeAdapter(list[Entry])


@dataclass
class Record:
    """The submissions of a run, oldest first. ``token`` is in the comment of each of its jobs."""

    run: Path
    token: str
    history: list[Entry] = field(default_factory=list)

    @property
    def comment(self) -> str:
        """What the comment of every job of this run begins with."""
        return f"mechstudy:{self.token}:"

    @property
    def latest(self) -> Entry | None:
        """The newest submission."""
        return self.history[-1] if self.history else None

    def entry(self, number: int) -> Entry | None:
        """A submission by its number."""
        return next((entry for entry in self.history if entry.number == number), None)

    def jobs(self) -> Iterator[tuple[Entry, SubmittedJob]]:
        """Every job, oldest first."""
        for entry in self.history:
            for job in entry.jobs:
                yield entry, job

    def ids(self) -> list[str]:
        """Ids of every job, oldest first."""
        return [job.job for _, job in self.jobs()]

    def elements(self) -> dict[str, Element]:
        """``12_3`` -> the element, oldest first."""
        return {
            f"{job.job}_{task}": Element(entry, job, task, unit)
            for entry, job in self.jobs() for task, unit in job.tasks.items()
        }  # fmt: skip

    def of_unit(self, unit: str) -> list[Element]:
        """Every element that was submitted for a unit, oldest first."""
        return [element for element in self.elements().values() if element.unit == unit]

    def cancelled(self) -> set[str]:
        """Units whose last job was taken back: by `mechstudy cancel`, or with the submission it belonged to."""
        taken = {str(job) for entry in self.history for event in entry.events
                 if event["what"] in (CANCELLED, TAKEN_BACK) for job in event.get("jobs", ())}  # fmt: skip
        last = {element.unit: (element.job.job, id) for id, element in self.elements().items()}
        return {unit for unit, ids in last.items() if not taken.isdisjoint(ids)}

    def write(self) -> None:
        """Writes the file. The caller holds `record_lock`."""
        history = [asdict(entry) for entry in self.history]
        write_json_atomic(_file(self.run), {"schema": SCHEMA, "token": self.token, "history": history})


def record_lock(run: Path, *, wait: float = 0.0) -> FileLock:
    """Held while jobs of a run are submitted, cancelled, or given other dependencies."""
    return FileLock(
        run / SLURM / "lock",
        wait=wait,
        what="another command is at work on this study's jobs",
        fix="wait for it to end",
    )


def has_record(run: Path) -> bool:
    """Whether anything of this run was ever submitted."""
    return _file(run).exists()


def read_record(run: Path) -> Record:
    """The history of a run; an empty one where nothing was submitted.

    Raises:
        MechstudyError: the file is not whole.
    """
    if not has_record(run):
        return Record(run, secrets.token_hex(4))
    content = read_json(_file(run))
    try:
        return Record(run, str(content["token"]), _HISTORY.validate_python(content["history"]))
    except (KeyError, TypeError, ValueError) as error:
        raise MechstudyError(
            "the record of what was submitted is damaged",
            where=str(_file(run)),
            facts={"cause": f"{type(error).__name__}: {error}"},
            fix="cancel the study's jobs with scancel, delete the file, and submit again: what is finished is kept",
        ) from error


def _file(run: Path) -> Path:
    return run / SLURM / RECORD
