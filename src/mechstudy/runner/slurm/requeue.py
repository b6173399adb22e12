"""What a job does after its unit has ended: nothing, go back into the queue, or record why it does not.

It goes back when the unit saved its progress (exit status 75) or was killed, as long as attempts make progress and are
not too many. Where a site forbids requeueing, another job is submitted, and waiting jobs are made to depend on it.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.runner.slurm import commands
from mechstudy.runner.slurm.arrays import dependency
from mechstudy.runner.slurm.commands import SlurmError
from mechstudy.runner.slurm.frozen import Frozen, thaw
from mechstudy.runner.slurm.queue import queue_of
from mechstudy.runner.slurm.record import Entry, Record, read_record, record_lock
from mechstudy.runner.unit_state import CHECKPOINTED, JobRecord, UnitState, now, saved_of, slurm_job, write_state

FUTILE = 2  # attempts in a row that had their time and saved nothing: the next would not either
FUTILE_KILLED = 3  # of those that were killed, which may have been bad luck
_FAILED = 2  # exit status
_LOCK_SECONDS = 60.0  # to wait for other jobs that write the record
_LOST = 126  # exit statuses from here on to 127: the worker could not even be started


def after_worker(run: Path, unit: str, number: int, code: int) -> int:
    """Decides, prints the decision on standard output, and returns the job's exit status.

    Args:
        number: of the submission.
        code: the worker's exit status, as the shell gives it: 128 and more is a signal.
    """
    record = JobRecord(run, unit)
    state = record.state
    if code == 0:
        return 0
    if code != CHECKPOINTED and code <= 128:
        if state.state != "failed":
            reason = "could not be started" if _LOST <= code <= 127 else "ended before it could say why"
            record.fail(f"the worker {reason} (exit status {code}); its job's log says more")
        return code
    frozen = thaw(run, number)
    _note_end(frozen, state, code)
    job = slurm_job()
    in_slurm = commands.state_of(job) if job else None
    if in_slurm not in (None, "RUNNING", "CONFIGURING", "PENDING"):
        write_state(run, state)
        print(f"{unit}: the job is {str(in_slurm).lower()}, so it ends here, with {_what_is_saved(state)}", flush=True)
        return code
    if (refusal := refuses(frozen, state)) is not None:
        record.fail(refusal.what, str(refusal), refusal.fix)
        print(f"error: {unit}: {refusal}", flush=True)
        return _FAILED
    write_state(run, state)
    print(f"{unit}: resumes from {_what_is_saved(state)}", flush=True)
    return _again(frozen, unit, job)


def refuses(frozen: Frozen, state: UnitState) -> MechstudyError | None:
    """Why a unit is not tried again; None where it is."""
    unit = next((unit for unit in frozen.units if unit.name == state.unit), None)
    phase = unit.phase.name if unit is not None else state.unit
    config = frozen.slurm.of_phase(phase)
    entry = read_record(frozen.run).entry(frozen.number)
    successors = [job for job in (entry.jobs if entry else ()) if job.successor_of and state.unit in job.tasks.values()]
    restarts = max(
        len(state.of_submission(frozen.number)) - 1, int(os.environ.get("SLURM_RESTART_COUNT") or 0), len(successors)
    )
    facts = {"saved": _what_is_saved(state), "last exit": exit_in_words(state)}
    limit = f"compute.slurm.time is {config.time}" if config.time else "the partition's own limit"
    killed = state.last is not None and state.last.exit_code != CHECKPOINTED
    futile = state.futile(frozen.number)
    if futile >= (FUTILE_KILLED if killed else FUTILE):
        causes = f"more memory or a longer time ({limit})" if killed else f"a longer time ({limit})"
        return MechstudyError(
            f"{futile} attempts in a row saved nothing, so it would not get further the next time",
            where=state.unit,
            facts=facts,
            fix=f"give phase {phase} {causes}: compute.slurm.phases.{phase}, or save more often; "
            "then `mechstudy resume`",
        )
    if restarts >= config.max_restarts:
        return MechstudyError(
            f"it was put back into the queue {restarts} times, as often as compute.slurm.max_restarts lets",
            where=state.unit,
            facts=facts,
            fix=f"`mechstudy resume` continues from there; a longer time for phase {phase} ({limit}) needs fewer",
        )
    return None


def exit_in_words(state: UnitState) -> str:
    """``0``, ``75 (saved in time)``, ``137 (SIGKILL)``; empty where it is unknown."""
    code = state.last.exit_code if state.last is not None else None
    if code is None:
        return ""
    if code == CHECKPOINTED:
        return f"{code} (saved in time)"
    try:
        return f"{code} ({signal.Signals(code - 128).name})" if code > 128 else str(code)
    except ValueError:
        return str(code)


def _note_end(frozen: Frozen, state: UnitState, code: int) -> None:
    """Notes how the last attempt ended, where its process was killed before it could."""
    last = state.last
    if last is None or not (last.exit_code is None or state.state == "running"):
        return
    state.state, state.reason = "saved", "its process was killed from outside"
    last.ended, last.exit_code = now(), code
    run = frozen.open_run()
    node = run.evaluate().nodes.get(state.unit)
    if node is not None and node.id is not None:
        last.after = saved_of(run.folder.store, node)


def _what_is_saved(state: UnitState) -> str:
    last = state.last
    return str(last.after or last.before) if last is not None else "nothing"


def _again(frozen: Frozen, unit: str, job: str) -> int:
    if frozen.slurm.requeue:
        try:
            commands.requeue(job)
        except SlurmError as error:
            print(f"{unit}: it cannot be put back into the queue ({error.said}); another job continues it", flush=True)
        else:
            return CHECKPOINTED
    try:
        successor = _succeed(frozen, unit, job)
    except MechstudyError as error:
        print(f"error: {unit}: no other job could be submitted: {error}", flush=True)
        return CHECKPOINTED
    print(f"{unit}: job {successor} continues it", flush=True)
    return 0  # jobs that wait for this one wait for the other now


def _succeed(frozen: Frozen, unit: str, job: str) -> str:
    """Submits a job for this unit, makes those that wait for this job wait for it too, and returns its id."""
    array, _, task = job.partition("_")
    with record_lock(frozen.run, wait=_LOCK_SECONDS):
        record = read_record(frozen.run)
        entry = record.entry(frozen.number)
        mine = next((item for item in entry.jobs if item.job == array), None) if entry is not None else None
        if entry is None or mine is None:
            raise MechstudyError(f"no submission knows of job {array}", where=str(frozen.run))
        successor = commands.submit(frozen.run / mine.script, f"--array={task}")
        entry.jobs.append(replace(mine, job=successor, tasks={int(task): unit}, successor_of=job))
        entry.note("successor", job=job, successor=successor, unit=unit)
        record.write()
        _wait_for_it_too(record, entry, mine.group)
        return successor


def _wait_for_it_too(record: Record, entry: Entry, group: str) -> None:
    """Waiting jobs of groups after this one are made to depend on all living jobs of the groups before them."""
    living = {row.job: row for row in queue_of(record.ids(), record.comment)}
    of_group: dict[str, list[str]] = {}
    for _, job in record.jobs():
        if job.job in living:
            of_group.setdefault(job.group, []).append(job.job)
    for _, later in record.jobs():
        if group in later.after and later.job in living and living[later.job].waits:
            before = [job for key in later.after for job in of_group.get(key, [])]
            commands.depend(later.job, dependency(before, later))
            entry.note("re-pointed", job=later.job, group=later.group, dependency=before)
    record.write()
