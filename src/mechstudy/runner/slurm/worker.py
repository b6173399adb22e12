"""One unit of a frozen study, as a job of a batch system runs it: alone, with its inputs checked, and its end told.

The steps: two locks (the run's, shared with its other jobs; the unit's own), what is on disk, the unit itself,
its state for `status` and `why`, and payload that nobody needs any more.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from mechstudy.core import signals as stopping
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import duration
from mechstudy.core.signals import Stopped
from mechstudy.runner.results import RunResult, UnitResult
from mechstudy.runner.resume_progress import Saved, saved
from mechstudy.runner.run import Run
from mechstudy.runner.run_unit import Job, Options, Outcome, perform
from mechstudy.runner.slurm.frozen import Frozen
from mechstudy.runner.slurm.unchanged import check_unchanged
from mechstudy.runner.unit_state import UnitState, file_name, new_attempt, now, read_state, write_state
from mechstudy.store.lock import FileLock, RunLock
from mechstudy.study.dag import Evaluation, Node
from mechstudy.study.run_folder import RunFolder

FAILED, CRASHED, CHECKPOINTED = 2, 1, 75
LOCKS = "locks"
_ASKED = {
    "SIGUSR1": "its time limit is near",
    "SIGTERM": "its job was cancelled, or had to make room for another",
}
_WAIT = 60.0  # seconds: a process of an earlier attempt that is ending


def run_unit(frozen: Frozen, name: str) -> int:
    """Runs a unit unless it is done, and returns the exit status.

    0: its artifact is there, or a gate stops it; 2: a mistake the user can mend, an input that is missing among them;
    1: a crash; 75: asked to stop, it has saved what it has and wants to be run again.

    Raises:
        MechstudyError: the study has no such unit, or a process runs the study without Slurm.
    """
    engine = frozen.engine()
    engine.graph.check([name])
    stopping.install()
    with ExitStack() as stack:
        stack.enter_context(RunLock(frozen.run, shared=True))
        try:
            stack.enter_context(unit_lock(frozen.run, name))
        except MechstudyError as error:
            _say(f"{name}: {error}")
            return CHECKPOINTED
        return _Worker(frozen, engine, name).run()


def unit_lock(run: Path, name: str, *, wait: float = _WAIT) -> FileLock:
    """Held by the process that works on a unit, so that no other does."""
    return FileLock(
        run / LOCKS / file_name(name), wait=wait, what=f"{name} is being run by another process", fix="wait for it"
    )


class _Worker:
    """The process that works on one unit."""

    def __init__(self, frozen: Frozen, engine: Run, name: str) -> None:
        self.frozen, self.engine, self.name = frozen, engine, name
        self.unit = engine.graph.units[name]
        self.state = read_state(frozen.run, name) or UnitState(name)

    def run(self) -> int:
        evaluation = self._evaluate()
        node = evaluation.nodes[self.name]
        if node.stopped is not None:
            self._settle("stopped", node.stopped)
            _say(f"{self.name}: stopped: {node.stopped}")
            return 0
        if node.artifact is not None and not node.must_run:
            _say(f"{self.name}: done already, {node.artifact.name}")
            self._done(evaluation)
            return 0
        self.state.attempts.append(new_attempt(self.frozen.number, self._saved(node)))
        self.state.artifact = None
        self._settle("running", None)
        try:
            self._check(evaluation)
            outcome = self._perform(evaluation, node)
        except MechstudyError as error:
            return self._failed(Outcome(self.name, 0.0, error=error))
        except Stopped as stop:
            return self._stopped(node, stop)
        if outcome.failed:
            return self._failed(outcome)
        self._done(self._evaluate(), outcome)
        return 0

    # ------------------------------------------------------------------ before

    def _evaluate(self) -> Evaluation:
        """What is on disk. A unit that takes what is there has the id of that: what is missing has ended, and will not
        come by itself."""
        evaluation = self.engine.evaluate()
        if self.unit.optional_inputs:
            for name in (*self.engine.graph.upstream(self.name), self.name):
                if self.engine.graph.units[name].optional_inputs:
                    node = evaluation.refresh(name)
                    node.must_run = node.stopped is None and (node.artifact is None or node.artifact.is_discarded)
        return evaluation

    def _check(self, evaluation: Evaluation) -> None:
        """Refuses a unit whose inputs are not there, or are no longer what was submitted."""
        missing = [source for source in self.engine.graph.upstream(self.name) if not _settled(evaluation, source)]
        if missing and self.unit.optional_inputs:
            _say(f"{self.name}: made without {', '.join(missing)}, which {'are' if missing[1:] else 'is'} not there")
        elif missing:
            told = {source: _why(self.frozen.run, evaluation, source) for source in missing[:6]}
            raise MechstudyError(
                f"{self.name} needs {missing[0]}, which is not there",
                where=str(self.frozen.run),
                facts=told,
                fix="`mechstudy resume` runs what is missing, in order",
            )
        check_unchanged(self.unit, self.frozen.options.base)

    def _saved(self, node: Node) -> Saved:
        if node.id is None:
            return Saved()
        return saved(self.engine.folder.store.partial(self.unit.phase, self.name, node.id))

    def _perform(self, evaluation: Evaluation, node: Node) -> Outcome:
        assert node.id is not None, f"{self.name}: its inputs are there, so it has an id"
        inputs = evaluation.input_keys(self.name)
        store = self.engine.folder.store
        _say(f"{self.name}: starts, {self._saved(node)} saved before")
        options = in_this_job(self.frozen.options)
        job = Job(self.unit, node.id, inputs, self.frozen.run, store.root, options, log=None)
        return perform(job, {}, sys.stderr)

    # ------------------------------------------------------------------- after

    def _done(self, evaluation: Evaluation, outcome: Outcome | None = None) -> None:
        node = evaluation.nodes[self.name]
        assert node.artifact is not None, f"{self.name} ended well and has no artifact"
        self.state.artifact, self.state.seconds = node.artifact.name, node.artifact.manifest.get("seconds")
        if outcome is not None:
            self._end(0, None)
            peak = f"{outcome.peak_rss_bytes / 1e9:.1f} GB at most"
            _say(f"{self.name}: done in {duration(outcome.seconds)}, {peak}, {node.artifact.name}")
        self._settle("done", None)
        discard(self.engine, evaluation)
        if self.unit.phase == "report":
            publish_summary(self.frozen, evaluation)

    def _failed(self, outcome: Outcome) -> int:
        error = outcome.error
        reason = error.what if error is not None else outcome.crash or ""
        code = FAILED if error is not None else CRASHED
        self.state.error = str(error) if error is not None else outcome.trace
        self._end(code, None)
        self._settle("failed", reason, error.fix if error is not None else None)
        _say(f"error: {self.name}: {error}" if error is not None else f"{outcome.trace}\nerror: {self.name}: {reason}")
        return code

    def _stopped(self, node: Node, stop: Stopped) -> int:
        found = self._saved(node)
        self._end(CHECKPOINTED, found)
        reason = _ASKED.get(stopping.reason(), stopping.reason() or str(stop))
        self._settle("saved", f"stopped: {reason}; {found} saved")
        _say(f"{self.name}: stopped: {reason}; {found} saved")
        return CHECKPOINTED

    def _end(self, code: int, found: Saved | None) -> None:
        last = self.state.attempts[-1]
        last.ended, last.exit_code, last.after = now(), code, found

    def _settle(self, state: str, reason: str | None, fix: str | None = None) -> None:
        self.state.state, self.state.reason, self.state.fix = state, reason, fix  # type: ignore[assignment]
        if state != "failed":
            self.state.error = None
        write_state(self.frozen.run, self.state)


def in_this_job(options: Options) -> Options:
    """The options with the threads that Slurm gave this job, where the study does not say how many."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    options = replace(options, max_parallel=1)
    return replace(options, threads=int(cpus)) if options.threads is None and cpus else options


def discard(engine: Run, evaluation: Evaluation) -> None:
    """Deletes payload that nobody needs any more, as a local run does; what another job is deleting is left to it."""
    for name in evaluation.disposable(evaluation.to_run):
        node = evaluation.nodes[name]
        if node.artifact is None or node.artifact.is_discarded:
            continue
        try:
            with unit_lock(engine.folder.path, name, wait=0.0):
                assert node.id is not None
                fresh = engine.folder.store.find(node.unit.phase, name, node.id)
                if fresh is None or fresh.is_discarded:
                    continue
                freed = engine.folder.store.discard(fresh, node.unit.discard_patterns)
        except MechstudyError:  # locked by another
            continue
        if freed:
            _say(f"{name}: {freed / 1e6:,.1f} MB deleted, nobody needs them any more")


def publish_summary(frozen: Frozen, evaluation: Evaluation) -> None:
    """The run's summary and the link to its report, once the report is there."""
    from mechstudy.runner.summary import write_summary

    report = next((node.artifact for node in evaluation.nodes.values() if node.unit.phase == "report"), None)
    if report is not None:
        RunFolder(frozen.run).point_report_to(report)
    write_summary(frozen.run, frozen.study, result_of(evaluation))


def result_of(evaluation: Evaluation) -> RunResult:
    """What a run would say of these units; its seconds are from the first start to the last end of any of them."""
    units = []
    for name, node in evaluation.nodes.items():
        status = "stopped" if node.stopped is not None else "done" if node.artifact is not None else "pending"
        taken = node.artifact.manifest.get("seconds") if node.artifact is not None else None
        units.append(UnitResult(name, node.unit.phase, status, True, taken, node.stopped, node.artifact))
    return RunResult(units, [], _span(evaluation))


def _span(evaluation: Evaluation) -> float:
    from datetime import datetime

    manifests = [node.artifact.manifest for node in evaluation.nodes.values() if node.artifact is not None]
    if not manifests:
        return 0.0
    first = min(datetime.fromisoformat(manifest["started"]) for manifest in manifests)
    return max(0.0, (max(datetime.fromisoformat(m["finished"]) for m in manifests) - first).total_seconds())


def _settled(evaluation: Evaluation, source: str) -> bool:
    """Whether an input is there, payload and all, or will not come because a gate stopped it."""
    node = evaluation.nodes[source]
    return node.stopped is not None or (node.artifact is not None and not node.must_run)


def _why(run: Path, evaluation: Evaluation, source: str) -> str:
    """Why an input is not there, in a line."""
    node, state = evaluation.nodes[source], read_state(run, source)
    if node.artifact is not None:
        return "its payload was deleted after use, and is needed again"
    if state is None:
        return "it has not run"
    last = state.last
    where = f" (job {last.job})" if last is not None and last.job else ""
    return f"{state.state}{where}{': ' + state.reason if state.reason else ''}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
