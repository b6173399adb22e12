"""Runs the units of a study: what is missing, in order, in this process or in several; stops and resumes cleanly.

The steps of `Run.execute`: take the lock, look at what is on disk, hand each unit that has to run to the pool as
soon as its inputs are there, settle gates and failures as they become known, delete payload nobody needs any
more. The files on disk are the only state: running again goes on where the last run was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from mechstudy.core import signals as stopping
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import is_full_disk
from mechstudy.core.progress import Progress, duration
from mechstudy.machine.memory import available_memory_bytes
from mechstudy.runner.pool import Here, Pool, Workers, WorkersDied
from mechstudy.runner.replacing import Aside
from mechstudy.runner.results import RunResult, UnitResult
from mechstudy.runner.resume_progress import saved
from mechstudy.runner.run_unit import LOG, Job, Options, Outcome
from mechstudy.study.dag import Evaluation, Graph, Node
from mechstudy.study.run_folder import ProgressFile, RunFolder
from mechstudy.study.unit import Unit


class Run:
    """A study's units and the folder they run in.

    Args:
        folder: the run's folder; artifacts go below it.
        units: of the study, as `build_units` gives them.
        options: device, threads, parallelism: how, not what.
        progress: where messages go; None prints to standard error and the run's log.
    """

    def __init__(
        self, folder: Path, units: Sequence[Unit], options: Options | None = None, progress: Progress | None = None
    ) -> None:
        self.folder = RunFolder(folder)
        self.graph = Graph(units)
        self.options = options or Options()
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
        """Runs what has to run for the targets (default: all units), alone in this folder.

        ``force`` names units that run although their artifact is there. One unit's failure leaves the others
        running; a full disk stops the run. ``before`` and ``after`` (with the result) are called while the folder is
        locked. Ctrl-C or SIGTERM stops units at their next safe point, with what they have on disk; a second one
        ends them at once, with their last checkpoints.

        Raises:
            Interrupted: it was asked to stop, and did.
            KeyboardInterrupt: it was asked twice.
            MechstudyError: a target that is no unit, or another process runs in this folder.
        """
        with self.folder.lock(), stopping.polite():
            if before is not None:
                before()
            result = _Session(self, self.evaluate(targets, force)).run()
            if after is not None:
                after(result)
            return result


class _Session:
    """One call of `Run.execute`."""

    def __init__(self, run: Run, evaluation: Evaluation) -> None:
        self.engine = run
        self.folder, self.graph, self.options = run.folder, run.graph, run.options
        self.progress = run.progress
        self.evaluation = evaluation
        self.nodes = evaluation.nodes
        self.waiting = evaluation.to_run
        self.total = len(self.waiting)
        self.running: dict[str, Job] = {}
        self.ran: dict[str, Outcome] = {}
        self.failures: list[Outcome] = []
        self.reasons: dict[str, str] = {}
        self.aside = Aside()
        self.file = ProgressFile(run.folder)
        self.began = time.monotonic()
        self.fatal = False

    def run(self) -> RunResult:
        self._announce()
        pool = self._pool()
        state = "interrupted"
        try:
            self._discard()
            while pool is not None and (self.waiting or self.running):
                try:
                    self._start_ready(pool)
                    if not self.running:
                        break
                    for outcome in pool.outcomes():
                        self._settle(outcome)
                except WorkersDied as death:
                    pool = self._replace(pool, death)
            state = "failed" if self.failures else "finished"
        except stopping.Stopped as stop:
            kept = {name: self._saved(job) for name, job in self.running.items()}
            raise stopping.Interrupted(str(stop), kept) from stop
        finally:
            if pool is not None:
                pool.stop()
            self.aside.restore()
            for name in self.running:
                self.file.set(name, "pending", reason="interrupted")
            self.file.write(state)
        return self._result()

    # ------------------------------------------------------------------ starting

    def _announce(self) -> None:
        done = sum(node.artifact is not None for node in self.nodes.values())
        for name, node in self.nodes.items():
            self._note(name, node)
        self.file.write()
        if self.waiting:
            self.progress.log(f"{self.total} units to run, {done} of {len(self.nodes)} done already")
        else:
            self.progress.log(f"nothing to run: {done} of {len(self.nodes)} units are done")
        for name, node in self.nodes.items():
            if node.stopped is not None and self.graph.units[name].gates:
                self.progress.log(f"{name}: stopped: {node.stopped}")

    def _note(self, name: str, node: Node) -> None:
        if node.stopped is not None:
            self.file.set(name, "stopped", reason=node.stopped)
        elif node.artifact is not None and name not in self.waiting:
            self.file.set(name, "done", seconds=node.artifact.manifest.get("seconds"), artifact=node.artifact.name)
        elif name not in self.waiting and (told := self.file.before.get(name, {})).get("reason"):
            self.file.set(name, **told)  # it failed, or waits for what did: this run does not try it again
        else:
            self.file.set(name, "pending")

    def _pool(self) -> Pool | None:
        if self.total == 0:
            return None
        width = min(self.options.max_parallel, self.total)
        return Here() if width == 1 else Workers(width, self.options.unit_threads)

    def _start_ready(self, pool: Pool) -> None:
        """Settles what cannot run any more and hands in what can, in order, until the pool is full."""
        for name in list(self.waiting):
            if stopping.requested():
                if not self.running:
                    stopping.stop_if_requested()
                return
            if self.fatal or len(self.running) >= pool.width:
                return
            if any(source in self.waiting or source in self.running for source in self.graph.upstream(name)):
                continue
            if not self._fits(name):
                continue
            job = self._prepare(name, quiet=pool.width > 1)
            if job is None:
                continue
            self.running[name] = job
            self.file.set(name, "running", artifact=self._folder_of(job))
            self.file.write()
            number = self.total - len(self.waiting)
            self.progress.log(f"[{number}/{self.total}] {name} starts")
            pool.submit(job)
            if pool.width == 1:
                return  # it has ended: settle it before the next

    def _fits(self, name: str) -> bool:
        """False when others run and this unit's memory is not to be had beside them."""
        needed = self.graph.units[name].estimate.bytes_in_memory
        return not self.running or needed <= available_memory_bytes()

    def _prepare(self, name: str, quiet: bool) -> Job | None:
        """The job of a unit whose inputs are settled; None when it is stopped, blocked, or done already."""
        self.waiting.remove(name)
        absent = self.evaluation.absent
        missing = [s for s in self.graph.required(name) if self.nodes[s].artifact is None or s in absent]
        node = self.evaluation.refresh(name)
        if node.stopped is not None:
            absent.add(name)
            self.file.set(name, "stopped", reason=node.stopped)
            self.progress.log(f"{name}: stopped: {node.stopped}")
            return None
        if missing:
            absent.add(name)
            self.reasons[name] = f"waits for {missing[0]}, which {self._why_missing(missing[0])}"
            self.file.set(name, "pending", reason=self.reasons[name])
            return None
        assert node.id is not None, f"{name}: every input is there, so it has an id"
        remake = name in self.evaluation.force or (bool(self.reasons) and node.unit.phase == "report")
        if node.artifact is not None and remake:  # a report also says what failed, now
            self.aside.put(name, node.artifact)
        elif node.artifact is not None and not (node.artifact.is_discarded and self._payload_needed(name)):
            self._note(name, node)
            return None
        inputs = self.evaluation.input_keys(name)
        options = self.options.of(name)
        return Job(node.unit, node.id, inputs, self.folder.path, self.folder.store.root, options, quiet)

    def _payload_needed(self, name: str) -> bool:
        return any(reader in self.waiting for reader in self.evaluation.readers(name))

    def _why_missing(self, name: str) -> str:
        if any(failure.name == name for failure in self.failures):
            return "failed"
        return "could not run" if name in self.reasons else "is not there"

    def _saved(self, job: Job) -> str:
        return str(saved(self.folder.store.partial(job.unit.phase, job.unit.name, job.id)))

    def _folder_of(self, job: Job) -> str:
        return self.folder.relative(self.folder.store.folder(job.unit.phase, job.unit.name, job.id))

    # ------------------------------------------------------------------ settling

    def _settle(self, outcome: Outcome) -> None:
        name = outcome.name
        del self.running[name]
        if outcome.failed:
            self._fail(outcome)
        else:
            self.aside.drop(name)
            node = self.evaluation.refresh(name)
            assert node.artifact is not None, f"{name} ended well and has no artifact"
            self.ran[name] = outcome
            self.file.set(name, "done", seconds=outcome.seconds, artifact=node.artifact.name)
            peak = f"{outcome.peak_rss_bytes / 1e9:.1f} GB at most"
            where = self.folder.relative(node.artifact.path)
            self.progress.log(f"{name} done in {duration(outcome.seconds)}, {peak}, {where}")
            self._discard()
        self.file.write()

    def _fail(self, outcome: Outcome) -> None:
        self.failures.append(outcome)
        self.evaluation.absent.add(outcome.name)
        reason = outcome.crash or (outcome.error.what if outcome.error is not None else "")
        self.reasons[outcome.name] = reason
        self.file.set(outcome.name, "failed", seconds=round(outcome.seconds, 3), reason=reason)
        self.progress.log(f"{outcome.name} failed: {reason}")
        self._write_trace(outcome)
        cause = outcome.error.__cause__ if outcome.error is not None else None
        if (cause is not None and is_full_disk(cause)) or "disk is full" in reason:
            self.fatal = True

    def _write_trace(self, outcome: Outcome) -> None:
        log = self.folder.path / LOG
        try:
            with log.open("a") as opened:
                opened.write(f"--- {outcome.name} ---\n{outcome.trace}\n")
        except OSError:
            return

    def _discard(self) -> None:
        """Deletes the payload of units whose consumers all have their artifacts."""
        busy = {*self.waiting, *self.running}
        for name in self.evaluation.disposable(busy):
            node = self.nodes[name]
            assert node.artifact is not None
            if node.artifact.is_discarded:
                continue
            freed = self.folder.store.discard(node.artifact, node.unit.discard_patterns)
            if freed:
                self.progress.log(f"{name}: {freed / 1e6:,.1f} MB deleted, nobody needs them any more")

    def _replace(self, pool: Pool, death: WorkersDied) -> Pool:
        """A narrower pool after workers were killed; a unit that dies alone has failed."""
        pool.stop()
        width = pool.width // 2
        self.progress.log(f"worker processes were killed while running {death}: most likely memory ran out")
        for job in death.jobs:
            self.running.pop(job.unit.name, None)
            if width == 0:
                self._fail(Outcome(job.unit.name, 0.0, error=_killed(job)))
            else:
                self.waiting.append(job.unit.name)
        self.waiting.sort(key=self.graph.order.index)
        if width:
            self.progress.log(f"going on with {width} at a time")
        return Workers(max(1, width), self.options.unit_threads)

    # -------------------------------------------------------------------- result

    def _result(self) -> RunResult:
        failed = {failure.name for failure in self.failures}
        units = []
        for name, node in self.nodes.items():
            if name in failed:
                status = "failed"
            elif node.stopped is not None:
                status = "stopped"
            else:
                status = "done" if node.artifact is not None else "pending"
            ran = self.ran.get(name)
            seconds = node.artifact.manifest.get("seconds") if node.artifact is not None else None
            reason = node.stopped or self.reasons.get(name)
            units.append(UnitResult(name, node.unit.phase, status, ran is not None, seconds, reason, node.artifact))
        return RunResult(units, self.failures, time.monotonic() - self.began)


def _killed(job: Job) -> MechstudyError:
    return MechstudyError(
        "its process was killed from outside, most likely because memory ran out",
        where=job.unit.name,
        facts={"available": f"{available_memory_bytes() / 2**30:.1f} GiB"},
        fix="set compute.max_parallel: 1 or a smaller compute.batch_tokens, or use a machine with more memory",
    )
