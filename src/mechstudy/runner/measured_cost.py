"""What a run took, from the manifests of its artifacts, and from Slurm's accounting where there is any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mechstudy.monitoring.record import read_usage, usage_file
from mechstudy.monitoring.summary import use_of
from mechstudy.runner.slurm.accounting import Accounted, accounting, keep_accounting, read_accounting
from mechstudy.runner.slurm.record import has_record, read_record
from mechstudy.store.artifacts import Artifact
from mechstudy.store.provenance import sessions_of
from mechstudy.study.dag import Evaluation

_NOT_LOST = ("COMPLETED", "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")


@dataclass(frozen=True)
class UnitReality:
    """What one finished unit took.

    ``seconds`` are of the process that finished it, ``sessions`` counts those that worked on it. ``peak_bytes`` is GPU
    memory where it ran on a GPU, else the memory of all ``processes`` that shared it, as are ``threads``. ``in_job``:
    it ran as a job, in a process of its own. ``files`` maps names to bytes as published; ``bytes_on_disk`` leaves out
    files discarded since.
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
    """Jobs that ran for a unit, by Slurm's accounting.

    ``requeued`` were put back into the queue; ``cancelled`` by the user or by Slurm.
    """

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
        sums = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        return Attempts(**sums | {"peak_rss_bytes": max(self.peak_rss_bytes, other.peak_rss_bytes)})


def reality_of(evaluation: Evaluation) -> dict[str, UnitReality]:
    """Unit -> what it took, of every unit that is done."""
    nodes = evaluation.nodes.items()
    return {name: _unit(node.artifact) for name, node in nodes if node.artifact is not None}


def attempts_of(elements: Mapping[str, str], accounted: Sequence[Accounted]) -> dict[str, Attempts]:
    """Unit -> its jobs.

    Args:
        elements: ``12_3``, as Slurm names an element of an array, -> unit.
    """
    attempts: dict[str, Attempts] = {}
    for run in accounted:
        unit = elements.get(run.job)
        if unit is not None and run.seconds:
            attempts[unit] = attempts.get(unit, Attempts()) + _attempt(run)
    return attempts


def accounted_jobs(folder: Path) -> tuple[dict[str, str], Sequence[Accounted] | None]:
    """The run's array elements (-> unit), and what Slurm's accounting says of them, now or earlier: sites forget.

    ({}, None) where nothing was submitted; None also where there is no accounting.
    """
    if not has_record(folder):
        return {}, None
    record = read_record(folder)
    elements = {name: element.unit for name, element in record.elements().items()}
    current = accounting(record.ids())
    rows = read_accounting(folder) if current is None else keep_accounting(folder, elements, current)
    return elements, rows if rows or current is not None else None


def _attempt(run: Accounted) -> Attempts:
    lost = run.state not in _NOT_LOST
    requeued = run.state in ("REQUEUED", "PREEMPTED", "NODE_FAIL")
    cancelled = run.state.startswith("CANCELLED")
    return Attempts(
        1,
        int(requeued),
        int(lost and not requeued and not cancelled),
        run.seconds,
        run.seconds * run.gpus,
        run.cpu_seconds_held,
        run.cpu_seconds_used,
        run.peak_rss_bytes or 0,
        run.seconds if lost else 0.0,
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
    others = runtime.get("peak_rss_bytes_of_helpers") or ()
    of_processes = int(manifest.get("peak_rss_bytes") or 0) + sum(others)
    if not others and not on_gpu and (use := use_of(read_usage(usage_file(artifact.path)))) is not None:
        of_processes = max(of_processes, use.rss)  # with idle processes of earlier units
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
