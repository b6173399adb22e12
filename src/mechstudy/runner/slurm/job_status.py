"""Which job runs, or is to run, each unit of a run; and how those ended that could not say so themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mechstudy.runner.slurm.alive import alive_units
from mechstudy.runner.slurm.commands import SlurmError, is_there
from mechstudy.runner.slurm.queue import Accounted, Queued, accounting, queue_of
from mechstudy.runner.slurm.record import Record, has_record, read_record
from mechstudy.runner.unit_state import read_state

_STATES = {
    "TIMEOUT": "its time limit came before it could save and go back into the queue: a longer compute.slurm.time, or "
    "a longer signal_lead",
    "OUT_OF_MEMORY": "it needed more memory than its job has: raise compute.slurm.memory",
    "NODE_FAIL": "its node failed",
    "CANCELLED": "its job was cancelled",
    "PREEMPTED": "its job had to make room for another",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline had passed",
    "FAILED": "its job failed before the worker began: see its log",
}
_TAKEN_AWAY = ("CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED")


@dataclass(frozen=True)
class Ended:
    """A job that ended without a word from its worker."""

    id: str
    state: str
    exit_code: int

    @property
    def failed(self) -> bool:
        """Whether the unit itself is to blame, and not that somebody took its job away."""
        return self.state not in _TAKEN_AWAY

    def in_words(self) -> str:
        """For people."""
        return _STATES.get(self.state, f"its job ended as {self.state.lower()} (exit status {self.exit_code})")


@dataclass
class JobsNow:
    """unit -> its living job; unit -> its last job, where only Slurm knows how that ended.

    ``queue_known`` is False where the queue could not be read: then nothing is known of what is alive.
    """

    record: Record | None = None
    alive: Mapping[str, Queued] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    submitted: frozenset[str] = frozenset()  # units that ever had a job
    cancelled: frozenset[str] = frozenset()  # units whose last job was taken back
    queue_known: bool = True
    notes: list[str] = field(default_factory=list)


def jobs_now(run: Path, *, ask_accounting: bool = True) -> JobsNow:
    """From the record, one squeue call, and sacct where there is one. Nothing is asked where nothing was submitted."""
    if not has_record(run):
        return JobsNow()
    record = read_record(run)
    submitted = frozenset(unit for _, job in record.jobs() for unit in job.tasks.values())
    found = JobsNow(record, submitted=submitted, cancelled=frozenset(record.cancelled()))
    if not record.ids():
        return found
    if not is_there():
        found.queue_known = False
        found.notes.append("there is no squeue on this machine: what is in the queue is not known")
        return found
    try:
        queued = queue_of(record.ids(), record.comment)
    except SlurmError as error:
        found.queue_known = False
        found.notes.append(f"the queue cannot be read: {error.what}")
        return found
    found.alive = alive_units(record, queued)
    if ask_accounting:
        _add_ended(run, record, found)
    return found


def _add_ended(run: Path, record: Record, found: JobsNow) -> None:
    """Last jobs of units that are neither alive nor told of: only accounting knows of those."""
    silent: dict[str, str] = {}
    for entry, job in record.jobs():
        for task, unit in job.tasks.items():
            if unit in found.alive:
                continue
            silent[unit] = f"{job.job}_{task}"
            if entry.cancelled is not None:
                silent.pop(unit)
    for unit in list(silent):
        state = read_state(run, unit)
        if state is not None and state.last and state.last.job == silent[unit] and state.state != "running":
            del silent[unit]  # it has told
    if not silent:
        return
    rows = accounting({id.partition("_")[0] for id in silent.values()})
    last: dict[str, Accounted] = {row.job: row for row in rows or []}
    for unit, id in silent.items():
        if (row := last.get(id)) is not None and row.state not in ("COMPLETED", "PENDING", "RUNNING", "REQUEUED"):
            found.ended[unit] = Ended(id, row.state, row.exit_code)
