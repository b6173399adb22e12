"""`mechstudy cancel`: takes jobs out of the queue. Saved progress stays."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.runner.slurm import commands
from mechstudy.runner.slurm.queue import queue_of
from mechstudy.runner.slurm.record import CANCELLED, read_record, record_lock


def cancel(run: Path, units: Collection[str] = ()) -> list[str]:
    """Cancels the jobs of some units, or of all; returns the units, or job ids without a unit, that were cancelled.

    Slurm itself takes jobs that depend on a cancelled one out of the queue.

    Raises:
        MechstudyError: nothing was submitted, or a unit that no job is of.
    """
    commands.require()
    with record_lock(run):
        record = read_record(run)
        if not record.history:
            raise MechstudyError("nothing of this study was submitted", where=str(run))
        elements = record.elements()
        submitted = {job.tasks[task] for _, job, task in elements.values()}
        for name in units:
            if name not in submitted:
                guess = nearest(name, submitted)
                raise MechstudyError(
                    f"no job is of {name}", where=str(run), fix=f"did you mean {guess}?" if guess else None
                )
        rows = queue_of(record.ids(), record.comment)
        of_row = {row.id: elements[row.id] for row in rows if row.id in elements}
        names = {id: job.tasks[task] for id, (_, job, task) in of_row.items()}
        chosen = [row for row in rows if not units or names.get(row.id) in units]
        # Arrays, with elements that start meanwhile; the last first, so that none starts because one before it is gone.
        whole = sorted({row.job for row in chosen}, key=int, reverse=True)
        ids = [row.id for row in chosen] if units else whole
        if ids:
            commands.cancel(ids)
            time.sleep(commands.PAUSE / 2)
            commands.cancel(ids)  # a job that was just going back into the queue is there again
            record.history[-1].note(CANCELLED, jobs=ids)
            record.write()
        return [names.get(row.id, row.id) for row in chosen]
