"""`mechstudy submit` and `mechstudy resume`: every job of a study at once, each waiting for those it needs.

The steps: nobody else is at it (a lock), nothing of it is alive that would do the same twice, freeze the study, write
a script per group of units, hand them to sbatch in order, and put down each id as it comes. Where one is refused,
those before it are taken back. Nothing stays behind on the login node.
"""

from __future__ import annotations

from mechstudy.core.errors import MechstudyError
from mechstudy.core.lock import RunLock
from mechstudy.execution.budget.fit import submit_refusal
from mechstudy.execution.graph import Evaluation
from mechstudy.execution.slurm import commands
from mechstudy.execution.slurm.alive import alive, same_study, still_alive
from mechstudy.execution.slurm.frozen import freeze
from mechstudy.execution.slurm.record import read_record, record_lock
from mechstudy.execution.slurm.sending import (
    Asked,
    Result,
    Say,
    Sending,
    frozen_of,
    groups_for,
    missing_of,
    write_script,
)

DRY_RUN = 0  # the number of a submission that was only shown


def show(asked: Asked) -> Result:
    """Writes the scripts of all that is missing to ``<run>/slurm/dry-run`` and submits nothing. Asks Slurm nothing."""
    evaluation = asked.opened.run().evaluate()
    result = _result(asked, evaluation)
    missing = evaluation.to_run
    if not missing:
        return result
    frozen = frozen_of(asked, DRY_RUN)
    freeze(frozen)
    ids: dict[str, str] = {}
    for group, tasks in missing_of(groups_for(asked, evaluation, largest=1001), missing):
        script = write_script(frozen, group, tasks, "mechstudy:dry-run")
        wait = [f"${key}" for key in group.after if key in ids]
        ids[group.key] = script.name
        dependency = f" --dependency=afterok:{':'.join(wait)}" if wait else ""
        result.shown.append((script, f"{group.key}=$(sbatch --parsable{dependency} {script})"))
    return result


def submit(asked: Asked, say: Say = lambda _: None) -> Result:
    """Submits all that is missing; with ``asked.command`` ``resume`` what is alive in the queue is left to run.

    Raises:
        MechstudyError: no sbatch; another submit is at work, or a local run; jobs are alive and it is no resume; the
            disk, or the memory or time asked for, is too small; Slurm refuses a job (what was submitted before it is
            cancelled again).
    """
    commands.require()
    run = asked.opened.folder
    with record_lock(run):
        if (holder := RunLock.holder(run)) is not None:
            raise MechstudyError(
                "this study is running on this machine, without Slurm",
                where=str(run),
                facts={"pid": str(holder.get("pid")), "host": str(holder.get("host"))},
                fix="wait for it, or stop that process: its finished work is kept",
            )
        record = read_record(run)
        living = alive(record)
        if living and asked.command == "submit":
            raise still_alive(record, living, asked.opened.file)
        evaluation = asked.opened.run().evaluate()
        result = _result(asked, evaluation)
        result.queued = [name for name in evaluation.to_run if name in living]
        same_study(record, living, asked.opened.units, asked.opened.file)
        missing = [name for name in evaluation.to_run if name not in living]
        if missing:
            if (refusal := submit_refusal(asked.opened, asked.slurm)) is not None:
                raise refusal
            Sending(asked, record, evaluation, living, missing, result, say).send()
    return result


def _result(asked: Asked, evaluation: Evaluation) -> Result:
    nodes = evaluation.nodes.values()
    return Result(
        asked.opened.folder,
        done=sum(node.artifact is not None and not node.must_run for node in nodes),
        stopped=sum(node.stopped is not None for node in nodes),
    )
