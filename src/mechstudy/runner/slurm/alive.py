"""Which units' jobs are alive, and whether more may be submitted beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechstudy.core.errors import MechstudyError
from mechstudy.runner.slurm import commands
from mechstudy.runner.slurm.frozen import identities, thaw
from mechstudy.runner.slurm.queue import Queued, queue_of
from mechstudy.runner.slurm.record import Record

if TYPE_CHECKING:
    from mechstudy.runner.study_run import OpenedStudy

ENDING_SECONDS = 40.0  # to wait for jobs that are ending: Slurm's KillWait and some more


def alive_units(record: Record, queued: Sequence[Queued]) -> dict[str, Queued]:
    """unit -> the job that is to run it, or runs it, now."""
    elements = record.elements()
    found: dict[str, Queued] = {}
    for row in queued:
        if row.id in elements:
            _, job, task = elements[row.id]
            found[job.tasks[task]] = row
    return found


def alive(record: Record) -> dict[str, Queued]:
    """`alive_units` of the queue as it is now; jobs of this run that no submission knows of are cancelled.

    Whoever calls it holds the record's lock.
    """
    if not record.history:
        return {}
    queued = _settled_queue(record)
    known = set(record.ids())
    if orphans := sorted({row.job for row in queued if row.job not in known}, key=int):
        commands.cancel(orphans[::-1])  # of a submit that was killed before it could put them down
        record.history[-1].note("cancelled jobs that no submission knew of", jobs=orphans)
        record.write()
    return alive_units(record, queued)


def _settled_queue(record: Record) -> list[Queued]:
    """The queue once nothing of this run is just ending: only then is it known what goes back into the queue.

    What takes longer is left out. A job that comes back all the same finds its unit done, or locked.
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
    """Refuses to add to living jobs of another study than this: edited since, they would make other artifacts."""
    if not living:
        return
    elements, now_is = record.elements(), identities(opened.units)
    before: dict[int, dict[str, str]] = {}
    other = []
    for name, queued in living.items():
        number = elements[queued.id][0].number
        if number not in before:
            before[number] = identities(thaw(record.run, number).units)
        if before[number].get(name) != now_is.get(name):
            other.append(name)
    if other:
        raise MechstudyError(
            "the study was changed, and jobs of what it was are in the queue",
            where=str(opened.file),
            facts={"units": ", ".join(sorted(other)[:8]) + (", ..." if len(other) > 8 else "")},
            fix=f"`{opened.command('cancel')}` first: what is finished is kept, and what did not change is not done "
            "again",
        )
