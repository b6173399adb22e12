"""Runs one unit of a frozen study as a job: alone, with its inputs checked, and with its state recorded."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mechstudy.core import signals
from mechstudy.core.errors import MechstudyError
from mechstudy.core.signals import Stopped
from mechstudy.runner.completion import Completion, conclude, job_of, result_of
from mechstudy.runner.job import Outcome
from mechstudy.runner.run import Run
from mechstudy.runner.run_unit import run_unit
from mechstudy.runner.slurm.frozen import Frozen
from mechstudy.runner.unit_state import CHECKPOINTED, JobRecord, file_name, read_state, saved_of
from mechstudy.store.lock import FileLock, RunLock
from mechstudy.study.dag import Evaluation

LOCKS = "locks"
_REQUESTS = {
    "SIGUSR1": "its time limit is near",
    "SIGTERM": "its job was cancelled, or had to make room for another",
}
_WAIT = 60.0  # seconds: a process of an earlier attempt that is ending


def run_in_job(frozen: Frozen, name: str) -> int:
    """Runs a unit unless it is done, and returns the exit status.

    0: its artifact is there, or a gate stops it; 2: a user error, a missing input among them; 1: a crash; 75: a stop
    was requested, its progress is saved, and it is to run again.

    Raises:
        MechstudyError: the study has no such unit, or a process runs the study without Slurm.
    """
    run = frozen.open_run()
    run.graph.check([name])
    signals.install()
    with ExitStack() as stack:
        stack.enter_context(RunLock(frozen.run, shared=True))
        try:
            stack.enter_context(unit_lock(frozen.run, name))
        except MechstudyError as error:
            _say(f"{name}: {error}")
            return CHECKPOINTED
        return _run(frozen, run, name)


def unit_lock(run: Path, name: str, *, wait: float = _WAIT) -> FileLock:
    """Held by the process that works on a unit, so that no other does."""
    return FileLock(
        run / LOCKS / file_name(name), wait=wait, what=f"{name} is being run by another process", fix="wait for it"
    )


def _run(frozen: Frozen, run: Run, name: str) -> int:
    record = JobRecord(frozen.run, name)
    completion = Completion(run.folder, _evaluate(run, name), record, _say, partial(unit_lock, frozen.run, wait=0.0))
    node = completion.evaluation.nodes[name]
    if completion.stopped(name):
        return 0
    if node.artifact is not None and not node.must_run:
        _say(f"{name}: done already, {node.artifact.name}")
        record.done(node)
        completion.discard_payload(completion.evaluation.to_run)
    else:
        saved = saved_of(run.folder.store, node)
        record.begin(frozen.number, saved)
        try:
            _check_inputs(frozen, completion.evaluation, name)
            _say(f"{name}: starts, {saved} saved before")
            options, cpus = frozen.options.replace(max_parallel=1), os.environ.get("SLURM_CPUS_PER_TASK")
            if options.threads is None and cpus:
                options = options.replace(threads=int(cpus))
            outcome = run_unit(job_of(run.folder, completion.evaluation, name, options, log=None), {}, sys.stderr)
        except MechstudyError as error:
            outcome = Outcome(name, 0.0, error=error)
        except Stopped as stop:
            reason = _REQUESTS.get(signals.reason(), signals.reason() or str(stop))
            saved = saved_of(run.folder.store, node)
            record.interrupted(f"stopped: {reason}; {saved} saved", saved)
            _say(f"{name}: stopped: {reason}; {saved} saved")
            return CHECKPOINTED
        if not outcome.failed:
            completion.evaluation = _evaluate(run, name)  # other jobs have ended meanwhile
        completion.settle(outcome, completion.evaluation.to_run)
        if outcome.failed:
            _say(f"error: {name}: {outcome.error}" if outcome.error is not None else outcome.trace)
            return outcome.exit_code
    if node.unit.phase.concludes:
        conclude(run.folder, frozen.study, result_of(completion.evaluation))
    return 0


def _evaluate(run: Run, name: str) -> Evaluation:
    """Every unit against the disk. The id of a unit with optional inputs follows from those that exist now."""
    evaluation = run.evaluate()
    if run.graph.units[name].phase.optional_inputs:
        for unit in (*run.graph.upstream(name), name):
            if run.graph.units[unit].phase.optional_inputs:
                node = evaluation.refresh(unit)
                node.must_run = node.stopped is None and (node.artifact is None or node.artifact.is_discarded)
    return evaluation


def _check_inputs(frozen: Frozen, evaluation: Evaluation, name: str) -> None:
    """Refuses a unit whose inputs are missing, or whose phase or files have changed: its id would be wrong."""
    unit = evaluation.graph.units[name]
    nodes = [evaluation.nodes[source] for source in evaluation.graph.upstream(name)]
    missing = [n.unit.name for n in nodes if n.stopped is None and (n.artifact is None or n.must_run)]
    if missing and unit.phase.optional_inputs:
        _say(f"{name}: made without {', '.join(missing)}, which {'are' if missing[1:] else 'is'} not there")
    elif missing:
        raise MechstudyError(
            f"{name} needs {missing[0]}, which is not there",
            where=str(frozen.run),
            facts={source: _why_missing(frozen.run, evaluation, source) for source in missing[:6]},
            fix="`mechstudy resume` runs what is missing, in order",
        )
    phase, version = unit.phase, frozen.versions.get(name, unit.phase.version)
    if phase.version != version:
        raise MechstudyError(
            f"mechstudy was changed since this was submitted: {phase.name} is now version {phase.version}, it "
            f"was {version}",
            where=name,
            fix="`mechstudy cancel`, then `mechstudy resume`: what did not change is kept",
        )
    if (changed := phase.changed(unit.spec, frozen.options.base)) is not None:
        raise MechstudyError(
            f"{changed} was changed since the study was submitted",
            where=name,
            fix="`mechstudy cancel`, then `mechstudy resume` with what is there now",
        )


def _why_missing(run: Path, evaluation: Evaluation, source: str) -> str:
    """Why an input is missing, in a line."""
    node, state = evaluation.nodes[source], read_state(run, source)
    if node.artifact is not None:
        return "its payload was deleted after use, and is needed again"
    if state is None:
        return "it has not run"
    where = f" (job {state.last.job})" if state.last is not None and state.last.job else ""
    return f"{state.state}{where}{': ' + state.reason if state.reason else ''}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
