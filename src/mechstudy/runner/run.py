"""Runs the missing units of a study on this machine, in order, in one process or several; stops and resumes cleanly.

The steps of `Run.execute`: take the lock, read what is on disk, give each unit that has to run to the pool as soon as
its inputs are there, and settle it when it ends. The files on disk are the only state: running again resumes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from mechstudy.core import signals
from mechstudy.core.files import disk_errors, is_full_disk
from mechstudy.core.notices import counted
from mechstudy.core.progress import Progress
from mechstudy.machine.memory import available_memory_bytes
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.completion import Completion, RunResult, job_of, result_of
from mechstudy.runner.job import LOG, Outcome, killed
from mechstudy.runner.pool import Pool, ProcessPool, ThisProcess, WorkersDied
from mechstudy.runner.unit_state import saved_of
from mechstudy.store.manifest import Artifact
from mechstudy.study.dag import Evaluation, Graph, Node
from mechstudy.study.run_folder import ProgressFile, RunFolder
from mechstudy.study.unit import Unit


class Run:
    """A study's units and the folder they run in.

    Args:
        folder: the run's folder, which holds its artifacts.
        units: the study's units, as `build_units` returns them.
        options: device, threads, parallelism: how units run, not what they compute.
        progress: prints messages; None prints to standard error and to the run's log.
    """

    def __init__(
        self, folder: Path, units: Sequence[Unit], options: RunOptions | None = None, progress: Progress | None = None
    ) -> None:
        self.folder = RunFolder(folder)
        self.graph = Graph(units)
        self.options = options or RunOptions()
        self.progress = progress or Progress(log_file=self.folder.path / LOG)

    def evaluate(self, targets: Iterable[str] | None = None, force: Collection[str] = ()) -> Evaluation:
        """Every unit against the disk: what is done, what a gate stops, and what has to run."""
        if targets is not None:
            targets = list(targets)
            self.graph.check(targets)
        return Evaluation(self.graph, self.folder.store, targets, force)

    def execute(
        self,
        targets: Iterable[str] | None = None,
        *,
        force: Collection[str] = (),
        before: Callable[[], None] | None = None,
        after: Callable[[RunResult], None] | None = None,
    ) -> RunResult:
        """Runs what has to run for the targets (default: all units), while no other process runs in this folder.

        ``force`` names units that run although their artifact is there. One unit's failure leaves the others
        running; a full disk stops the run. ``before`` and ``after`` (with the result) are called while the folder is
        locked. Ctrl-C or SIGTERM stops units at their next safe point, with what they have on disk; a second one
        ends them at once, with their last checkpoints.

        Raises:
            Interrupted: it was asked to stop, and did.
            KeyboardInterrupt: it was asked twice.
            MechstudyError: a target that is no unit, or another process runs in this folder.
        """
        with self.folder.lock(), signals.polite():
            if before is not None:
                before()
            result = _Session(self, self.evaluate(targets, force)).run()
            if after is not None:
                after(result)
            return result


class _ProgressRecord:
    """The states of a run's units, in its ``progress.json``."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.file = folder, ProgressFile(folder)

    def running(self, node: Node) -> None:
        self.file.set(node.unit.name, "running", artifact=self.folder.relative(self.folder.store.folder(*node.key)))
        self.file.write()

    def stopped(self, node: Node) -> None:
        self.file.set(node.unit.name, "stopped", reason=node.stopped)

    def done(self, node: Node) -> None:
        assert node.artifact is not None
        seconds = node.artifact.manifest.get("seconds")
        self.file.set(node.unit.name, "done", seconds=seconds, artifact=node.artifact.name)

    def failed(self, outcome: Outcome) -> None:
        self.file.set(outcome.name, "failed", seconds=round(outcome.seconds, 3), reason=outcome.reason)
        with suppress(OSError), (self.folder.path / LOG).open("a") as log:
            log.write(f"--- {outcome.name} ---\n{outcome.trace}\n")

    def pending(self, name: str, reason: str | None = None) -> None:
        self.file.set(name, "pending", reason=reason)


class _ReplacedArtifacts:
    """Artifacts, by unit, that are set aside while their unit runs again."""

    def __init__(self) -> None:
        self._paths: dict[str, tuple[Path, Path]] = {}  # where it was, and is

    def put(self, name: str, artifact: Artifact) -> None:
        path = artifact.path
        away = path.with_name(f"{path.name}.replaced")
        with disk_errors(path):
            shutil.rmtree(away, ignore_errors=True)
            path.rename(away)
        self._paths[name] = path, away

    def drop(self, name: str) -> None:
        """Deletes the old artifact of a unit that has a new one."""
        if name in self._paths:
            shutil.rmtree(self._paths.pop(name)[1], ignore_errors=True)

    def restore(self) -> None:
        """Puts back those whose unit has no new artifact."""
        for path, away in self._paths.values():
            if away.exists() and not path.exists():
                away.rename(path)


class _Session:
    """One call of `Run.execute`."""

    def __init__(self, run: Run, evaluation: Evaluation) -> None:
        self.folder, self.graph, self.options, self.log = run.folder, run.graph, run.options, run.progress.log
        self.evaluation, self.nodes = evaluation, evaluation.nodes
        self.waiting = evaluation.to_run
        self.total = len(self.waiting)
        self.running: set[str] = set()
        self.ran: set[str] = set()
        self.failures: dict[str, Outcome] = {}
        self.reasons: dict[str, str] = {}  # why a unit has no artifact
        self.replaced = _ReplacedArtifacts()
        self.record = _ProgressRecord(run.folder)
        self.completion = Completion(run.folder, evaluation, self.record, self.log)
        self.began = time.monotonic()
        self.disk_is_full = False

    def run(self) -> RunResult:
        self._announce()
        pool = self._pool()
        state = "interrupted"
        try:
            self.completion.discard_payload(self.waiting)
            while self.waiting or self.running:
                try:
                    self._start_ready(pool)
                    if not self.running:
                        break
                    for outcome in pool.outcomes():
                        self._settle(outcome)
                except WorkersDied as death:
                    pool = self._replace(pool, death)
            state = "failed" if self.failures else "finished"
        except signals.Stopped as stop:
            store = self.folder.store
            raise signals.Interrupted(
                str(stop), {name: str(saved_of(store, self.nodes[name])) for name in self.running}
            ) from stop
        finally:
            pool.close()
            self.replaced.restore()
            for name in self.running:
                self.record.pending(name, "interrupted")
            self.record.file.write(state)
        seconds = time.monotonic() - self.began
        return result_of(self.evaluation, self.failures, self.reasons, self.ran, seconds)

    # ------------------------------------------------------------------ starting

    def _announce(self) -> None:
        done = sum(node.artifact is not None for node in self.nodes.values())
        if self.waiting:
            self.log(f"{counted(self.total, 'unit')} to run, {done} of {len(self.nodes)} done already")
        else:
            self.log(f"nothing to run: {done} of {len(self.nodes)} units are done")
        for name, node in self.nodes.items():
            before = self.record.file.before.get(name, {})
            if node.stopped is not None:
                self.record.stopped(node)
                if node.unit.gates:
                    self.log(f"{name}: stopped: {node.stopped}")
            elif node.artifact is not None and name not in self.waiting:
                self.record.done(node)
            elif name not in self.waiting and before.get("reason"):
                self.record.file.set(name, **before)  # it failed, or waits for a failed unit: not a target of this run
            else:
                self.record.pending(name)
        self.record.file.write()

    def _pool(self) -> Pool:
        width = min(self.options.max_parallel, self.total)
        return ThisProcess() if width <= 1 else ProcessPool(width, self.options.unit_threads)

    def _start_ready(self, pool: Pool) -> None:
        """Settles units that cannot run any more and starts those that can, in order, until the pool is full."""
        for name in list(self.waiting):
            if signals.requested():
                if not self.running:
                    signals.stop_if_requested()
                return
            if self.disk_is_full or len(self.running) >= pool.width:
                return
            if any(source in self.waiting or source in self.running for source in self.graph.upstream(name)):
                continue
            needed = self.graph.units[name].estimate.bytes_in_memory
            if self.running and needed > available_memory_bytes():
                continue  # the units that run leave too little for this one
            if not self._has_to_run(name):
                continue
            job = job_of(self.folder, self.evaluation, name, self.options)
            self.running.add(name)
            self.record.running(self.nodes[name])
            self.log(f"[{self.total - len(self.waiting)}/{self.total}] {name} starts")
            pool.submit(job)
            if pool.width == 1:
                return  # it has ended: settle it before the next

    def _has_to_run(self, name: str) -> bool:
        """False for a unit, whose inputs are settled, that a gate stops, that lacks an input, or that is done."""
        self.waiting.remove(name)
        absent = self.evaluation.absent
        missing = [s for s in self.graph.required(name) if self.nodes[s].artifact is None or s in absent]
        node = self.evaluation.refresh(name)
        if self.completion.stopped(name):
            absent.add(name)
            return False
        if missing:
            absent.add(name)
            self.reasons[name] = f"waits for {missing[0]}, which {self._why_missing(missing[0])}"
            self.record.pending(name, self.reasons[name])
            return False
        if node.artifact is None:
            return True
        if name in self.evaluation.force or (self.reasons and node.unit.phase.concludes):
            self.replaced.put(name, node.artifact)  # a report says what failed now
            return True
        if node.artifact.is_discarded and any(reader in self.waiting for reader in self.evaluation.readers(name)):
            return True
        self.record.done(node)
        return False

    def _why_missing(self, name: str) -> str:
        if name in self.failures:
            return "failed"
        return "could not run" if name in self.reasons else "is not there"

    # ------------------------------------------------------------------ settling

    def _settle(self, outcome: Outcome) -> None:
        name = outcome.name
        self.running.discard(name)
        self.completion.settle(outcome, {*self.waiting, *self.running})
        if outcome.failed:
            self.failures[name], self.reasons[name] = outcome, outcome.reason
            self.evaluation.absent.add(name)
            cause = outcome.error.__cause__ if outcome.error is not None else None
            if (cause is not None and is_full_disk(cause)) or "disk is full" in outcome.reason:
                self.disk_is_full = True
        else:
            self.replaced.drop(name)
            self.ran.add(name)
        self.record.file.write()

    def _replace(self, pool: Pool, death: WorkersDied) -> Pool:
        """A narrower pool after processes were killed; a unit that is killed alone has failed."""
        pool.close()
        width = pool.width // 2
        self.log(f"worker processes were killed while running {death}: most likely memory ran out")
        for job in death.jobs:
            self.running.discard(job.unit.name)
            if width == 0:
                self._settle(Outcome(job.unit.name, 0.0, error=killed(job.unit.name)))
            else:
                self.waiting.append(job.unit.name)
        self.waiting.sort(key=self.graph.order.index)
        if width:
            self.log(f"going on with {width} at a time")
        return ProcessPool(max(1, width), self.options.unit_threads)
