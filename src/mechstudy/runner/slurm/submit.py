"""`mechstudy submit` and `mechstudy resume`: every job of a study at once, each waiting for those it needs.

The steps: nobody else is at it (a lock), nothing of it is alive that would do the same twice, freeze the study, write
a script per group of units, hand them to sbatch in order, and put down each id as it comes. Where one is refused,
those before it are taken back. Nothing stays behind on the login node.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from mechstudy.core.errors import MechstudyError
from mechstudy.planning.fit import submit_refusal
from mechstudy.runner.prompt_files import prompts_refusal
from mechstudy.runner.slurm import commands
from mechstudy.runner.slurm.alive import alive, same_study, still_alive
from mechstudy.runner.slurm.frozen import freeze
from mechstudy.runner.slurm.groups import dependency
from mechstudy.runner.slurm.queue import Queued
from mechstudy.runner.slurm.record import has_record, read_record, record_lock
from mechstudy.runner.slurm.submission import (
    Asked,
    Result,
    Say,
    Sending,
    Shown,
    frozen_of,
    groups_for,
    missing_of,
    write_script,
)
from mechstudy.store.lock import RunLock
from mechstudy.study.dag import Evaluation

DRY_RUN = 0  # the number of a submission that was only shown


def show(asked: Asked) -> Result:
    """Writes the scripts of all that is missing to ``<run>/slurm/dry-run`` and submits nothing. Asks Slurm nothing."""
    evaluation = asked.opened.run().evaluate()
    result = _result(asked, evaluation)
    missing = evaluation.to_run
    if not missing:
        return result
    if (refusal := prompts_refusal(asked.opened, missing)) is not None:
        raise refusal
    frozen = frozen_of(asked, DRY_RUN)
    freeze(frozen)
    shown: set[str] = set()
    for group, tasks in missing_of(groups_for(asked, evaluation, largest=1001), missing):
        script = write_script(frozen, group, tasks, "mechstudy:dry-run")
        after = [key for key in group.after if key in shown]
        shown.add(group.key)
        before = [f"${_variable(key)}" for key in after]
        wait = dependency(before, takes_what_is_there=group.takes_what_is_there)
        option = f" --dependency={wait}" if wait else ""
        command = f"{_variable(group.key)}=$(sbatch --parsable{option} {shlex.quote(str(script))})"
        asks = asked.slurm.of_phase(group.phase)
        result.shown.append(Shown(group, list(tasks.values()), after, asks, script, command))
    return result


def submit(asked: Asked, say: Say = lambda _: None) -> Result:
    """Submits all that is missing; with ``asked.command`` ``resume`` what is alive in the queue is left to run.

    Raises:
        MechstudyError: no sbatch; another submit is at work, or a local run; jobs are alive and it is no resume; a
            prompts file is broken; the disk, or the memory or time asked for, is too small; Slurm refuses a job (what
            was submitted before it is cancelled again).
    """
    commands.require()
    run = asked.opened.folder
    if not has_record(run):  # before anything is written: a refusal leaves no folder behind
        _check(asked, asked.opened.run().evaluate().to_run)
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
            raise still_alive(record, living, asked.opened)
        evaluation = asked.opened.run().evaluate()
        result = _result(asked, evaluation)
        living = {name: job for name, job in living.items() if job.waits or not _lacks(evaluation, living, name)}
        result.queued = [name for name in evaluation.to_run if name in living]
        same_study(record, living, asked.opened)
        missing = [name for name in evaluation.to_run if name not in living]
        if missing:
            if record.history:
                _check(asked, missing)
            Sending(asked, record, evaluation, living, missing, result, say).send()
    return result


def _check(asked: Asked, missing: Sequence[str]) -> None:
    """Refuses what would fail, or cannot fit."""
    if missing and (refusal := prompts_refusal(asked.opened, missing) or submit_refusal(asked.opened, asked.slurm)):
        raise refusal


def _lacks(evaluation: Evaluation, living: Mapping[str, Queued], name: str) -> bool:
    """Whether a unit that takes what is there is being made without something that is to be submitted now."""
    graph, missing = evaluation.graph, set(evaluation.to_run) - set(living)
    return graph.units[name].optional_inputs and not missing.isdisjoint(graph.upstream(name))


def _result(asked: Asked, evaluation: Evaluation) -> Result:
    nodes = evaluation.nodes.values()
    return Result(
        asked.opened.folder,
        done=sum(node.artifact is not None and not node.must_run for node in nodes),
        stopped=sum(node.stopped is not None for node in nodes),
    )


def _variable(key: str) -> str:
    """A group's key as a name in the shell."""
    return re.sub(r"\W", "_", key)
