"""What a job does once its worker has ended: nothing, put itself back into the queue, or say why it will not.

It goes back when the worker saved what it had (exit status 75) or was killed, while it gets on and has not been back
too often. Where a site forbids that, another job is submitted instead, and those that wait are made to wait for it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.runner.resume_progress import saved
from mechstudy.runner.slurm import commands
from mechstudy.runner.slurm.commands import SlurmError
from mechstudy.runner.slurm.frozen import Frozen, thaw
from mechstudy.runner.slurm.groups import dependency
from mechstudy.runner.slurm.queue import queue_of
from mechstudy.runner.slurm.record import Entry, Record, read_record, waiting_lock
from mechstudy.runner.slurm.worker import CHECKPOINTED, FAILED
from mechstudy.runner.unit_state import UnitState, now, read_state, slurm_job, write_state

FUTILE = 2  # attempts in a row that had their time and saved nothing: the next would not either
FUTILE_KILLED = 3  # of those that were killed, which may have been bad luck
_LOST = 126  # exit statuses from here on to 127: the worker could not even be started


def after_worker(run: Path, unit: str, number: int, code: int) -> int:
    """Decides, says so on standard output, and returns the job's exit status.

    Args:
        number: of the submission.
        code: the worker's exit status, as the shell gives it: 128 and more is a signal.
    """
    state = read_state(run, unit) or UnitState(unit)
    if code == 0:
        return 0
    if code != CHECKPOINTED and code <= 128:
        if state.state != "failed":
            reason = "could not be started" if _LOST <= code <= 127 else "ended before it could say why"
            _fail(run, state, f"the worker {reason} (exit status {code}); its job's log says more")
        return code
    frozen = thaw(run, number)
    _note_end(frozen, state, code)
    job = slurm_job()
    if job and (found := commands.state_of(job)) is not None and found not in ("RUNNING", "CONFIGURING", "PENDING"):
        write_state(run, state)
        print(f"{unit}: the job is {found.lower()}, so it ends here, with {_what_is_saved(state)}", flush=True)
        return code
    if (refusal := refuses(frozen, state)) is not None:
        _fail(run, state, refusal.what, str(refusal), refusal.fix)
        print(f"error: {unit}: {refusal}", flush=True)
        return FAILED
    write_state(run, state)
    print(f"{unit}: goes on from {_what_is_saved(state)}", flush=True)
    return _again(frozen, unit, job)


def refuses(frozen: Frozen, state: UnitState, environment: Mapping[str, str] = os.environ) -> MechstudyError | None:
    """Why a unit is not tried again; None where it is."""
    unit = next((unit for unit in frozen.units if unit.name == state.unit), None)
    phase = unit.phase if unit is not None else state.unit
    config = frozen.slurm.of_phase(phase)
    restarts = max(
        len(state.of_submission(frozen.number)) - 1,
        int(environment.get("SLURM_RESTART_COUNT") or 0),
        _successors(frozen, state.unit),
    )
    limit = f"compute.slurm.time is {config.time}" if config.time else "the partition's own limit"
    killed = state.last is not None and state.last.exit_code != CHECKPOINTED
    futile = state.futile(frozen.number)
    if futile >= (FUTILE_KILLED if killed else FUTILE):
        causes = f"more memory or a longer time ({limit})" if killed else f"a longer time ({limit})"
        return MechstudyError(
            f"{futile} attempts in a row saved nothing, so it would not get further the next time",
            where=state.unit,
            facts={"saved": _what_is_saved(state), "last exit": exit_in_words(state)},
            fix=f"give phase {phase} {causes}: compute.slurm.phases.{phase}, or save more often; "
            "then `mechstudy resume`",
        )
    if restarts >= config.max_restarts:
        return MechstudyError(
            f"it was put back into the queue {restarts} times, as often as compute.slurm.max_restarts lets",
            where=state.unit,
            facts={"saved": _what_is_saved(state), "last exit": exit_in_words(state)},
            fix=f"`mechstudy resume` goes on from there; a longer time for phase {phase} ({limit}) needs fewer",
        )
    return None


def _successors(frozen: Frozen, unit: str) -> int:
    """How many jobs were submitted to go on with a unit, where jobs cannot be put back."""
    entry = read_record(frozen.run).entry(frozen.number)
    jobs = entry.jobs if entry is not None else []
    return sum(job.successor_of is not None and unit in job.tasks.values() for job in jobs)


def exit_in_words(state: UnitState) -> str:
    """``0``, ``75 (saved in time)``, ``137 (SIGKILL)``; empty where it is not known."""
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
    """Puts down how the last attempt ended, where its worker was killed before it could."""
    if not state.attempts:
        return
    last = state.attempts[-1]
    engine = frozen.engine()
    node = engine.evaluate().nodes.get(state.unit)
    if last.exit_code is None or state.state == "running":
        state.state = "saved"
        state.reason = "its process was killed from outside"
        last.ended, last.exit_code = now(), code
        if node is not None and node.id is not None:
            last.after = saved(engine.folder.store.partial(node.unit.phase, node.unit.name, node.id))


def _what_is_saved(state: UnitState) -> str:
    last = state.last
    found = None if last is None else last.after or last.before
    return str(found) if found is not None else "nothing"


def _fail(run: Path, state: UnitState, reason: str, error: str | None = None, fix: str | None = None) -> None:
    state.state, state.reason, state.error, state.fix = "failed", reason, error, fix
    write_state(run, state)


def _again(frozen: Frozen, unit: str, job: str) -> int:
    if frozen.slurm.requeue:
        try:
            commands.requeue(job)
        except SlurmError as error:
            print(f"{unit}: it cannot be put back into the queue ({error.said}); another job goes on", flush=True)
        else:
            return CHECKPOINTED
    try:
        successor = _succeed(frozen, unit, job)
    except MechstudyError as error:
        print(f"error: {unit}: no other job could be submitted: {error}", flush=True)
        return CHECKPOINTED
    print(f"{unit}: job {successor} goes on", flush=True)
    return 0  # so that those which wait for this one wait for the other now


def _succeed(frozen: Frozen, unit: str, job: str) -> str:
    """Submits a job for this one unit, and makes those that wait for this one wait for it too; its id."""
    array, _, task = job.partition("_")
    with waiting_lock(frozen.run):
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
            commands.depend(later.job, dependency(before, takes_what_is_there=later.takes_what_is_there))
            entry.note("re-pointed", job=later.job, group=later.group, dependency=before)
    record.write()
