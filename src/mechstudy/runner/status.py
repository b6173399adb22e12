"""`mechstudy status`: every unit's state, from the files of the run, and from the queue where jobs were submitted.

A unit is done when its artifact is there; it runs when the queue says so, or its process holds its lock. Times are
shown and never compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import duration
from mechstudy.runner.run import Run
from mechstudy.runner.slurm.job_status import JobsNow, jobs_now
from mechstudy.runner.slurm.queue import in_words
from mechstudy.runner.slurm.worker import unit_lock
from mechstudy.runner.unit_state import UnitState, read_states, saved_of
from mechstudy.store.artifact_writer import PARTIAL, SCRATCH
from mechstudy.store.lock import FileLock, RunLock
from mechstudy.store.provenance import read_sessions
from mechstudy.study.dag import Node


@dataclass(frozen=True)
class UnitStatus:
    """A unit's status: done, running, queued, failed, stopped or pending.

    ``detail`` is its progress, or the reason; ``job`` the Slurm job that runs it, waits to, or ran it.
    """

    name: str
    phase: str
    status: str
    seconds: float | None = None
    artifact: str | None = None
    detail: str = ""
    job: str | None = None


@dataclass(frozen=True)
class Status:
    """The units; the process that runs them now (``{pid, host, since}`` or None); and what Slurm could not answer."""

    units: list[UnitStatus]
    holder: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Status -> how many units."""
        return dict(Counter(unit.status for unit in self.units))


def read_status(run: Run) -> Status:
    """Every unit from the files and the queue; the running ones with their progress."""
    with ThreadPoolExecutor(1) as other:  # the queue's answer takes as long as reading the artifacts does
        asked = other.submit(jobs_now, run.folder.path)
        nodes = run.evaluate().nodes
        reader = _Reader(run, asked.result())
    for name, node in nodes.items():  # each after those it needs
        reader.statuses[name] = reader.unit(node)
    return Status(list(reader.statuses.values()), reader.holder, reader.jobs.notes)


class _Reader:
    """Reads the states of units."""

    def __init__(self, run: Run, jobs: JobsNow) -> None:
        self.run, self.jobs = run, jobs
        self.holder = RunLock.holder(run.folder.path)
        self.recorded: Mapping[str, dict[str, Any]] = run.folder.read_progress().get("units", {})
        self.states = read_states(run.folder.path)
        self.statuses: dict[str, UnitStatus] = {}
        self.causes: dict[str, str] = {}  # unit -> the unit that keeps it from running, and how that ended

    def unit(self, node: Node) -> UnitStatus:
        """The status of a unit; those that it needs have theirs."""
        name = node.unit.name
        status = partial(UnitStatus, name, node.unit.phase.name)
        if node.stopped is not None:
            return status("stopped", detail=node.stopped)
        if self.recorded.get(name, {}).get("status") == "running" and self.holder is not None:
            detail, seconds = _live(self.run.folder.path / self.recorded[name].get("artifact", "none"))
            return status("running", seconds, detail=detail)
        job = self._job(node, status)
        if job is not None and (job.status == "running" or node.artifact is None):
            return job
        if node.artifact is not None:
            detail = "payload discarded" if node.artifact.is_discarded else ""
            seconds = node.artifact.manifest.get("seconds")
            return status("done", seconds, self.run.folder.relative(node.artifact.path), detail)
        return self._unfinished(node, status)

    def _job(self, node: Node, status: Callable[..., UnitStatus]) -> UnitStatus | None:
        """The status of a unit that a job runs or waits to run; None where none does."""
        name = node.unit.name
        state, row = self.states.get(name), self.jobs.alive.get(name)
        if row is not None and row.waits:
            words = in_words(row.state, row.reason)
            if state is not None and state.state == "saved" and state.last is not None:
                words = f"{words}; resumes from {self._saved(node)}"
            return status("queued", detail=words, job=row.id)
        if row is None and (self.jobs.queue_known or state is None or state.state != "running"):
            return None
        if row is None and FileLock.held_by(unit_lock(self.run.folder.path, name).path) is None:
            return None  # the queue cannot be read
        detail, seconds = _live(self.run.folder.store.folder(*node.key)) if node.id is not None else ("", None)
        if row is None:
            return status("running", seconds, detail=detail, job=_last_job(state))
        detail = detail or in_words(row.state, row.reason)
        # By the queue's clock: the file's may still be that of an attempt before.
        return status("running", row.seconds, detail=f"{detail}, on {row.node}", job=row.id)

    def _saved(self, node: Node) -> str:
        return str(saved_of(self.run.folder.store, node))

    def _unfinished(self, node: Node, status: Callable[..., UnitStatus]) -> UnitStatus:
        """The status of a unit that is neither done nor in the queue."""
        name, phase = node.unit.name, node.unit.phase
        state, recorded = self.states.get(name), self.recorded.get(name, {})
        reason = str(recorded.get("reason") or "")
        if (ended := self.jobs.ended.get(name)) is not None and ended.failed:  # before it could record it
            return status("failed", detail=ended.in_words(), job=ended.id)
        if state is not None and state.state == "failed":
            fix = f" (fix: {state.fix})" if state.fix else ""
            return status("failed", detail=f"{_reason(state)}{fix}", job=_last_job(state))
        if recorded.get("status") == "failed":
            return status("failed", recorded.get("seconds"), detail=reason or "see log.txt")
        if node.id is not None and not reason and self.run.folder.store.others(phase.name, name, node.id):
            detail = "done for another version of the study; will run again"
            if phase.optional_inputs and (cause := self._cause(node)):
                detail = f"made without the output of {cause}; will run again once that is there"
            return status("pending", detail=detail)
        return status("pending", detail=self._pending(node, state, reason))

    def _cause(self, node: Node) -> str:
        """``train[1], which failed`` (or was cancelled) of the first such unit upstream, or none."""
        for source in self.run.graph.upstream(node.unit.name):
            if self.statuses[source].status == "failed":
                self.causes[node.unit.name] = f"{source}, which failed"
            elif source in self.causes:
                self.causes[node.unit.name] = self.causes[source]
            elif source in self.jobs.cancelled and self.statuses[source].status == "pending":
                self.causes[node.unit.name] = f"{source}, which was cancelled"
            else:
                continue
            return self.causes[node.unit.name]
        return ""

    def _pending(self, node: Node, state: UnitState | None, reason: str) -> str:
        """Why a unit that is not done does not run."""
        cause, cancelled = self._cause(node), node.unit.name in self.jobs.cancelled
        if cause and (cause.endswith("failed") or not cancelled):
            return f"waits for {cause}"
        if state is not None and state.state in ("saved", "running"):
            how = "cancelled" if cancelled else "interrupted"
            return f"{how}, {self._saved(node)} saved; in no queue: `mechstudy resume` continues it"
        if cancelled:
            return "cancelled; `mechstudy resume` submits it again"
        if (ended := self.jobs.ended.get(node.unit.name)) is not None:
            return ended.in_words()
        begun = node.id is not None and self.run.folder.store.partial(*node.key)
        if self.jobs.queue_known and node.unit.name in self.jobs.submitted:
            return "in no queue; `mechstudy resume` submits it"
        return reason or ("begun; will be resumed" if begun else "")


def _reason(state: UnitState) -> str:
    """Why it failed, with the file and line where it is known."""
    first = (state.error or "").partition("\n")[0]
    return first if state.reason and first.endswith(state.reason) else state.reason or ""


def _last_job(state: UnitState | None) -> str | None:
    return (state.last.job or None) if state is not None and state.last is not None else None


def _live(artifact: Path) -> tuple[str, float | None]:
    """An unfinished artifact's own progress file as a line, and the seconds since it was begun or resumed."""
    scratch = artifact.with_name(artifact.name + PARTIAL) / SCRATCH
    text, since = "", None
    with suppress(MechstudyError, TypeError, ValueError, IndexError):
        began = datetime.fromisoformat(read_sessions(scratch)[-1]["started"])
        since = max(0.0, (datetime.now(UTC) - began).total_seconds())  # another host's clock may be ahead
    with suppress(MechstudyError, TypeError, ValueError):
        bar = read_json(scratch / "progress.json")
        total = f"/{bar['total']:,}" if bar.get("total") else ""
        parts = [f"{bar['label']} {bar['done']:,}{total} {bar['counts']}".strip()]
        if bar.get("rate"):
            parts.append(f"{bar['rate']:,.3g} {bar['counts']}/s")
        if bar.get("eta") is not None and bar["done"] < (bar.get("total") or 0):
            parts.append(f"{duration(bar['eta'])} left")
        text = ", ".join([*parts, *bar.get("info", [])])
    return text, since
