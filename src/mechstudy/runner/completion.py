"""What follows a unit's end, wherever it ran: its state is recorded, unneeded payload deleted, the summary written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

from mechstudy import report
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import write_json_atomic
from mechstudy.core.progress import duration
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.job import LOG, Job, Outcome
from mechstudy.store.manifest import Artifact
from mechstudy.study.dag import Evaluation, Node
from mechstudy.study.phases.report import ReportUnit, report_data
from mechstudy.study.run_folder import SUMMARY, RunFolder
from mechstudy.study.unit import Unit


@dataclass(frozen=True)
class UnitResult:
    """A unit after a run. ``status`` is done, failed, stopped (by a gate) or pending; ``ran``: in this run."""

    unit: Unit
    status: str
    ran: bool = False
    reason: str | None = None
    artifact: Artifact | None = None

    @property
    def name(self) -> str:
        """The unit's name."""
        return self.unit.name


@dataclass(frozen=True)
class RunResult:
    """What a run did: every unit of the study, the errors in full, and the wall time."""

    units: list[UnitResult]
    failures: list[Outcome]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, or 2 where a unit failed by a user error, or 1 where one crashed."""
        return min((failure.exit_code for failure in self.failures), default=0)

    @property
    def ran(self) -> list[str]:
        """Names of the units that finished in this run."""
        return [unit.name for unit in self.units if unit.ran and unit.status == "done"]

    def unit(self, name: str) -> UnitResult:
        """The result of one unit."""
        return next(unit for unit in self.units if unit.name == name)


class Recorder(Protocol):
    """Where the states of units are written: a run's ``progress.json``, or a job's ``units/<unit>.json``."""

    def stopped(self, node: Node) -> None:
        """A gate stops the unit."""

    def done(self, node: Node) -> None:
        """The unit has its artifact."""

    def failed(self, outcome: Outcome) -> None:
        """The unit has none."""


class Completion:
    """Prepares the units of an evaluation to run, and settles them as they end.

    Args:
        say: prints a message.
        guard: a lock on a unit whose payload other processes may delete at the same time; a MechstudyError from it
            skips the unit.
    """

    def __init__(
        self,
        folder: RunFolder,
        evaluation: Evaluation,
        recorder: Recorder,
        say: Callable[[str], None],
        guard: Callable[[str], AbstractContextManager[Any]] = lambda _: nullcontext(),
    ) -> None:
        self.folder, self.evaluation, self.recorder = folder, evaluation, recorder
        self.say, self.guard = say, guard

    def stopped(self, name: str) -> bool:
        """Whether a gate stops the unit, which is then recorded."""
        node = self.evaluation.nodes[name]
        if node.stopped is not None:
            self.recorder.stopped(node)
            self.say(f"{name}: stopped: {node.stopped}")
        return node.stopped is not None

    def settle(self, outcome: Outcome, still_to_run: Collection[str]) -> None:
        """Records how a unit ended; where it ended well, deletes payload that no unit needs any more."""
        if outcome.failed:
            self.recorder.failed(outcome)
            self.say(f"{outcome.name} failed: {outcome.reason}")
            return
        node = self.evaluation.refresh(outcome.name)
        assert node.artifact is not None, f"{outcome.name} ended well and has no artifact"
        self.recorder.done(node)
        took = f"{duration(outcome.seconds)}, {outcome.peak_rss_bytes / 1e9:.1f} GB at most"
        self.say(f"{outcome.name} done in {took}, {self.folder.relative(node.artifact.path)}")
        self.discard_payload(still_to_run)

    def discard_payload(self, still_to_run: Collection[str]) -> None:
        """Deletes the payload of complete units whose readers all have their artifacts."""
        for name in self.evaluation.disposable(still_to_run):
            node = self.evaluation.nodes[name]
            if node.artifact is None or node.artifact.is_discarded:
                continue
            freed = 0
            try:
                with self.guard(name):
                    artifact = self.folder.store.find(*node.key)  # as it is now
                    if artifact is not None and not artifact.is_discarded:
                        freed = self.folder.store.discard(artifact, node.unit.phase.payload)
            except MechstudyError:
                continue
            self.evaluation.refresh(name)
            if freed:
                self.say(f"{name}: {freed / 1e6:,.1f} MB deleted, no unit needs them any more")


def job_of(folder: RunFolder, evaluation: Evaluation, name: str, options: RunOptions, log: str | None = LOG) -> Job:
    """The job of a unit whose inputs are there."""
    node = evaluation.nodes[name]
    assert node.id is not None, f"{name}: every input is there, so it has an id"
    return Job(node.unit, node.id, evaluation.input_keys(name), folder.path, options.of(name), log)


def conclude(folder: RunFolder, study: Mapping[str, Any], result: RunResult) -> None:
    """Links the newest report from the run's folder and writes its ``summary.json``.

    Args:
        study: as plain JSON.
    """
    newest = next((unit.artifact for unit in result.units if unit.unit.phase.concludes), None)
    if newest is not None:
        folder.point_report_to(newest)
    wall = result.seconds
    if not result.ran:  # a run that finds everything done keeps the time of the run that did it
        wall = folder.read_summary().get("wall_seconds") or wall
    units = [_report_unit(unit) for unit in result.units]
    peak = max((unit.artifact.manifest["peak_rss_bytes"] or 0 for unit in units if unit.artifact), default=0)
    summary = report.build_summary(report_data(study, units), round(wall, 3), peak)
    write_json_atomic(folder.path / SUMMARY, summary)


def findings_of(folder: RunFolder) -> list[str]:
    """The findings in plain words, from the summary as written."""
    return report.findings(folder.read_summary())


def result_of(
    evaluation: Evaluation,
    failures: Mapping[str, Outcome] = MappingProxyType({}),
    reasons: Mapping[str, str] = MappingProxyType({}),
    ran: Collection[str] | None = None,
    seconds: float | None = None,
) -> RunResult:
    """The result of a run.

    Args:
        reasons: why units without an artifact have none.
        ran: units that ran; None where every unit was a job.
        seconds: of the run; None for the time from the first start to the last end of any unit.
    """
    units = []
    for name, node in evaluation.nodes.items():
        if name in failures:
            status = "failed"
        elif node.stopped is not None:
            status = "stopped"
        else:
            status = "done" if node.artifact is not None else "pending"
        reason = node.stopped or reasons.get(name)
        units.append(UnitResult(node.unit, status, ran is None or name in ran, reason, node.artifact))
    return RunResult(units, list(failures.values()), _span(evaluation) if seconds is None else seconds)


def _report_unit(result: UnitResult) -> ReportUnit:
    unit, artifact = result.unit, result.artifact if result.status == "done" else None
    return ReportUnit(unit.name, unit.phase, unit.key, artifact, {"status": result.status, "reason": result.reason})


def _span(evaluation: Evaluation) -> float:
    manifests = [node.artifact.manifest for node in evaluation.nodes.values() if node.artifact is not None]
    if not manifests:
        return 0.0
    first = min(datetime.fromisoformat(manifest["started"]) for manifest in manifests)
    return max(0.0, (max(datetime.fromisoformat(m["finished"]) for m in manifests) - first).total_seconds())
