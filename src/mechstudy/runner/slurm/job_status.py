"""The jobs of a run: which runs or waits to run each unit, how those ended that could not record it, and `cancel`."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.runner.slurm import commands
from mechstudy.runner.slurm.accounting import accounting
from mechstudy.runner.slurm.commands import SlurmError, is_there
from mechstudy.runner.slurm.frozen import REFUSALS, SLURM, identities, thaw
from mechstudy.runner.slurm.queue import Queued, queue_of
from mechstudy.runner.slurm.record import CANCELLED, Record, has_record, read_record, record_lock
from mechstudy.runner.unit_state import read_state

ENDING_SECONDS = 40.0  # to wait for jobs that are ending: Slurm's KillWait and some more
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
_REFUSED = 2  # exit status of a script that does not start its worker
_TAKEN_AWAY = ("CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED")


@dataclass(frozen=True)
class Ended:
    """A job that ended without recording how."""

    id: str
    state: str
    exit_code: int
    reason: str = ""  # that its script left, where it could not start the worker

    @property
    def failed(self) -> bool:
        """Whether the unit itself failed, and its job was not taken away."""
        return self.state not in _TAKEN_AWAY

    def in_words(self) -> str:
        """For people."""
        if self.reason:
            return self.reason
        return _STATES.get(self.state, f"its job ended as {self.state.lower()} (exit status {self.exit_code})")


@dataclass
class JobsNow:
    """Unit -> its job in the queue; unit -> its last job, where only Slurm knows how that ended.

    ``queue_known`` is False where the queue could not be read.
    """

    alive: Mapping[str, Queued] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    submitted: frozenset[str] = frozenset()  # units that ever had a job
    cancelled: frozenset[str] = frozenset()  # units whose last job was taken back
    queue_known: bool = True
    notes: list[str] = field(default_factory=list)


def jobs_now(run: Path, *, ask_accounting: bool = True) -> JobsNow:
    """From the record, one squeue call, and sacct where there is one; where nothing was submitted, from nothing."""
    if not has_record(run):
        return JobsNow()
    record = read_record(run)
    submitted = frozenset(element.unit for element in record.elements().values())
    jobs = JobsNow(submitted=submitted, cancelled=frozenset(record.cancelled()))
    if not record.ids():
        return jobs
    if not is_there():
        jobs.queue_known = False
        jobs.notes.append("there is no squeue on this machine: what is in the queue is unknown")
        return jobs
    try:
        queued = queue_of(record.ids(), record.comment)
    except SlurmError as error:
        jobs.queue_known = False
        jobs.notes.append(f"the queue cannot be read: {error.what}")
        return jobs
    jobs.alive = alive_units(record, queued)
    if ask_accounting:
        _add_ended(run, record, jobs)
    return jobs


def alive_units(record: Record, queued: Sequence[Queued]) -> dict[str, Queued]:
    """Unit -> the job that waits to run it, or runs it."""
    elements = record.elements()
    return {elements[row.id].unit: row for row in queued if row.id in elements}


def alive(record: Record) -> dict[str, Queued]:
    """`alive_units` of the queue as it is now; jobs of this run that no submission recorded are cancelled.

    The caller holds the record's lock.
    """
    if not record.history:
        return {}
    queued = _settled_queue(record)
    if orphans := sorted({row.job for row in queued} - set(record.ids()), key=int):
        commands.cancel(orphans[::-1])  # of a submit that was killed before it could record them
        record.history[-1].note("cancelled jobs that no submission knew of", jobs=orphans)
        record.write()
    return alive_units(record, queued)


def _settled_queue(record: Record) -> list[Queued]:
    """The queue once no job of this run is ending: only then is it known which go back into the queue.

    Jobs that take longer are left out. One that comes back finds its unit done, or locked.
    """
    end = time.monotonic() + ENDING_SECONDS
    while True:
        queued = queue_of(record.ids(), record.comment)
        ending = [row for row in queued if row.state == "COMPLETING"]
        if not ending or time.monotonic() >= end:
            return [row for row in queued if row.state != "COMPLETING"]
        time.sleep(commands.PAUSE)


def still_alive(record: Record, living: Mapping[str, Queued], opened: OpenedStudy) -> MechstudyError:
    """The error that names the jobs there are, and what to do."""
    jobs = sorted({queued.job for queued in living.values()}, key=int)
    running = sum(not queued.waits for queued in living.values())
    return MechstudyError(
        "jobs of this study are in the queue already",
        where=str(record.run),
        facts={"jobs": ", ".join(jobs), "units": f"{len(living)}, {running} of them running"},
        fix=f"`{opened.command('status')}` shows them; `{opened.command('resume')}` adds what is missing, "
        f"`{opened.command('cancel')}` takes them back",
    )


def same_study(record: Record, living: Mapping[str, Queued], opened: OpenedStudy) -> None:
    """Refuses to add jobs to those of a study that was edited since: they make other artifacts."""
    if not living:
        return
    elements, now_is = record.elements(), identities(opened.units)
    before: dict[int, dict[str, str]] = {}
    other = []
    for name, queued in living.items():
        number = elements[queued.id].entry.number
        if number not in before:
            before[number] = identities(thaw(record.run, number).units)
        if before[number].get(name) != now_is.get(name):
            other.append(name)
    if other:
        raise MechstudyError(
            "the study was changed, and jobs of its earlier version are in the queue",
            where=str(opened.file),
            facts={"units": ", ".join(sorted(other)[:8]) + (", ..." if len(other) > 8 else "")},
            fix=f"`{opened.command('cancel')}` first: what is finished is kept, and what did not change is not done "
            "again",
        )


def _add_ended(run: Path, record: Record, jobs: JobsNow) -> None:
    """Adds the last jobs of units that are neither alive nor recorded as ended: only accounting knows of those."""
    silent: dict[str, str] = {}
    for unit, (id, entry) in {e.unit: (id, e.entry) for id, e in record.elements().items()}.items():
        if unit in jobs.alive or entry.cancelled is not None:
            continue
        state = read_state(run, unit)
        if state is None or state.last is None or state.last.job != id or state.state == "running":
            silent[unit] = id
    for unit, id in list(silent.items()):
        if (reason := refusal_of(run, id)) is not None:
            jobs.ended[unit] = Ended(id, "FAILED", _REFUSED, reason)
            del silent[unit]
    last = {row.job: row for row in accounting({id.partition("_")[0] for id in silent.values()}) or []}
    for unit, id in silent.items():
        if (row := last.get(id)) is not None and row.state not in ("COMPLETED", "PENDING", "RUNNING", "REQUEUED"):
            jobs.ended[unit] = Ended(id, row.state, row.exit_code)


def refusal_of(run: Path, job: str) -> str | None:
    """Why a job's script did not start its worker; None where it did."""
    with suppress(OSError):
        what, _, fix = (run / SLURM / REFUSALS / job).read_text(errors="replace").strip().partition("\n")
        return f"{what} (fix: {fix})" if fix else what
    return None


def _nothing_submitted(run: Path) -> MechstudyError:
    fix = "mechstudy submit; or --out, if the study was submitted with one"
    return MechstudyError("nothing of this study was submitted", where=str(run), fix=fix)


def cancel(run: Path, units: Collection[str] = ()) -> list[str]:
    """Cancels the jobs of some units, or of all; returns the units, or job ids without a unit, that were cancelled.

    Slurm itself takes jobs that depend on a cancelled one out of the queue.

    Raises:
        MechstudyError: nothing was submitted, or a unit that no job is of.
    """
    commands.require()
    if not has_record(run):  # before anything is written
        raise _nothing_submitted(run)
    with record_lock(run):
        record = read_record(run)
        if not record.history:
            raise _nothing_submitted(run)
        unit_of = {id: element.unit for id, element in record.elements().items()}
        for name in units:
            if name not in unit_of.values():
                guess = nearest(name, unit_of.values())
                raise MechstudyError(
                    f"no job is of {name}", where=str(run), fix=f"did you mean {guess}?" if guess else None
                )
        rows = queue_of(record.ids(), record.comment)
        chosen = [row for row in rows if not units or unit_of.get(row.id) in units]
        # Arrays, with elements that start meanwhile; the last first, so that none starts because one before it is gone.
        whole = sorted({row.job for row in chosen}, key=int, reverse=True)
        ids = [row.id for row in chosen] if units else whole
        if ids:
            commands.cancel(ids)
            time.sleep(commands.PAUSE / 2)
            commands.cancel(ids)  # a job that was just going back into the queue is there again
            record.history[-1].note(CANCELLED, jobs=ids)
            record.write()
        return [unit_of.get(row.id, row.id) for row in chosen]
