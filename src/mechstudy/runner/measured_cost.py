"""What a run really took: from the manifests of its artifacts, and from Slurm's accounting where there is some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mechstudy.monitoring.record import read_usage, usage_file
from mechstudy.monitoring.summary import use_of
from mechstudy.runner.slurm.queue import Accounted
from mechstudy.store.artifacts import Artifact
from mechstudy.store.sessions import sessions_of
from mechstudy.study.dag import Evaluation

_ENDED_WELL = ("COMPLETED",)
_GOES_ON = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")


@dataclass(frozen=True)
class UnitReality:
    """Of one finished unit. ``seconds`` of the process that finished it, ``sessions`` how many worked on it;
    ``peak_bytes`` of the GPU's memory where it ran on one, else of all ``processes`` that shared it; ``threads`` are of
    all of them; ``in_job`` of a batch system, which means a process of its own; ``files`` name -> bytes as published,
    ``bytes_on_disk`` without those discarded since.
    """

    unit: str
    phase: str
    seconds: float
    sessions: int
    span_seconds: float
    gpu_seconds: float
    peak_bytes: int
    files: Mapping[str, int]
    bytes_on_disk: int
    processes: int = 1
    in_job: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Attempts:
    """Jobs that ran for a unit, by Slurm's accounting: all, those put back into the queue, those that failed, and those
    that were cancelled, by the user or by Slurm."""

    jobs: int = 0
    requeued: int = 0
    failed: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    cpu_seconds_used: float = 0.0
    peak_rss_bytes: int = 0
    lost_seconds: float = 0.0  # of jobs that did not end well
    waited_seconds: float = 0.0  # in the queue, each job by itself
    cancelled: int = 0

    def __add__(self, other: Attempts) -> Attempts:
        return Attempts(
            self.jobs + other.jobs,
            self.requeued + other.requeued,
            self.failed + other.failed,
            self.seconds + other.seconds,
            self.gpu_seconds + other.gpu_seconds,
            self.cpu_seconds + other.cpu_seconds,
            self.cpu_seconds_used + other.cpu_seconds_used,
            max(self.peak_rss_bytes, other.peak_rss_bytes),
            self.lost_seconds + other.lost_seconds,
            self.waited_seconds + other.waited_seconds,
            self.cancelled + other.cancelled,
        )


def reality_of(evaluation: Evaluation) -> dict[str, UnitReality]:
    """Every unit that is done."""
    nodes = evaluation.nodes.items()
    return {name: _unit(node.artifact) for name, node in nodes if node.artifact is not None}


def attempts_of(elements: Mapping[str, str], accounted: Sequence[Accounted]) -> dict[str, Attempts]:
    """unit -> its jobs.

    Args:
        elements: ``12_3``, as Slurm names an element of an array, -> unit.
    """
    found: dict[str, Attempts] = {}
    for run in accounted:
        unit = elements.get(run.job)
        if unit is not None and run.seconds:
            found[unit] = found.get(unit, Attempts()) + _attempt(run)
    return found


def accounted_jobs(folder: Path) -> tuple[dict[str, str], Sequence[Accounted] | None]:
    """The run's elements (-> unit) and what Slurm accounted for them, now or when it was asked before (sites forget);
    (none, None) where nothing was submitted or there is no accounting."""
    from mechstudy.runner.slurm.accounting import keep_accounting, read_accounting
    from mechstudy.runner.slurm.queue import accounting
    from mechstudy.runner.slurm.record import has_record, read_record

    if not has_record(folder):
        return {}, None
    record = read_record(folder)
    elements = {name: job.tasks[task] for name, (_, job, task) in record.elements().items()}
    told = accounting(record.ids())
    kept = read_accounting(folder) if told is None else keep_accounting(folder, elements, told)
    return elements, kept if kept or told is not None else None


def _attempt(run: Accounted) -> Attempts:
    well = run.state in _ENDED_WELL
    requeued = run.state in ("REQUEUED", "PREEMPTED", "NODE_FAIL")
    cancelled = run.state.startswith("CANCELLED")
    lost = not well and not requeued and not cancelled and run.state not in _GOES_ON
    return Attempts(
        1,
        int(requeued),
        int(lost),
        run.seconds,
        run.seconds * run.gpus,
        run.cpu_seconds_held,
        run.cpu_seconds_used,
        run.peak_rss_bytes or 0,
        0.0 if well or run.state in _GOES_ON else run.seconds,
        run.waited,
        int(cancelled),
    )


def _unit(artifact: Artifact) -> UnitReality:
    manifest: dict[str, Any] = artifact.manifest
    gone = set(manifest.get("discarded", ()))
    files = {name: int(file["size"]) for name, file in manifest["files"].items()}
    seconds = float(manifest.get("seconds") or 0.0)
    runtime = manifest.get("runtime") or {}
    on_gpu = str(runtime.get("device", "cpu")).startswith("cuda")
    helpers = runtime.get("peak_rss_bytes_of_helpers") or ()
    of_processes = int(manifest.get("peak_rss_bytes") or 0) + sum(helpers)
    if not helpers and not on_gpu and (use := use_of(read_usage(usage_file(artifact.path)))) is not None:
        of_processes = max(of_processes, use.rss)  # with processes that have helped before and wait
    measured = manifest.get("gpu_seconds")
    return UnitReality(
        artifact.unit,
        artifact.phase,
        seconds,
        int(manifest.get("sessions") or 1),
        _span(manifest, seconds),
        float(measured) if measured is not None else seconds if on_gpu else 0.0,
        int(manifest.get("peak_gpu_bytes") or 0) if on_gpu else of_processes,
        files,
        sum(size for name, size in files.items() if name not in gone),
        int(runtime.get("world_size") or 1),
        any("slurm" in session for session in sessions_of(manifest)),
        None if not runtime.get("threads") else int(runtime["threads"]) * int(runtime.get("world_size") or 1),
    )


def _span(manifest: Mapping[str, Any], seconds: float) -> float:
    """Seconds from the first session's start to the end: more than ``seconds`` where it was interrupted."""
    try:
        begun, ended = (datetime.fromisoformat(manifest[key]) for key in ("started", "finished"))
    except (KeyError, TypeError, ValueError):
        return seconds
    return max(seconds, (ended - begun).total_seconds())
