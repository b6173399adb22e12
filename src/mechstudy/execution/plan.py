"""`mechstudy plan`: what every unit will take, before anything is loaded.

Shapes, bytes on disk and memory follow from the study; time is FLOPs over a quickly measured rate, and rough.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mechstudy.activations.quota import Quota
from mechstudy.core.errors import MechstudyError
from mechstudy.core.memory import available_memory_bytes, total_memory_bytes
from mechstudy.execution.engine import Run
from mechstudy.execution.folder import ARTIFACTS
from mechstudy.execution.graph import Evaluation
from mechstudy.phases.unit import Unit

_EFFICIENCY = 0.5  # share of a plain matrix product's rate that whole units reach, roughly
_ASSUMED_GPU_RATE = 1e14  # FLOP/s, where a GPU is there and is not measured
_MEASURE_SECONDS = 0.25
_SPARE = 256 << 20  # bytes kept free beside what the study writes: logs, checkpoints, the report


@dataclass(frozen=True)
class Rate:
    """FLOP/s a unit may reach, and where the number comes from."""

    flops_per_second: float
    source: str

    @property
    def effective(self) -> float:
        return self.flops_per_second * _EFFICIENCY


@dataclass(frozen=True)
class PlanRow:
    """One unit. ``state``: done, runs (at once), waits (for its inputs), stopped (by a gate).

    ``seconds`` are those it took where it is done, else rough.
    """

    unit: str
    phase: str
    state: str
    shapes: dict[str, str]
    note: str
    bytes_on_disk: int
    exact: bool
    bytes_in_memory: int
    flops: float
    seconds: float | None
    retention: str
    reason: str | None = None


@dataclass(frozen=True)
class Disk:
    """Bytes the units still to run write: as the study says, with captured activations kept, and discarded."""

    needed: int
    needed_keeping: int
    needed_discarding: int
    free: int
    quota_left: int | None = None  # of storage.quota

    @property
    def short_by(self) -> int:
        """Bytes that are missing; 0 when it fits."""
        if not self.needed:
            return 0
        over = 0 if self.quota_left is None else self.needed - self.quota_left
        return max(0, self.needed + _SPARE - self.free, over)


@dataclass(frozen=True)
class Plan:
    """A study's plan; `as_json` is what ``--json`` prints."""

    rows: list[PlanRow]
    rate: Rate
    disk: Disk
    memory_needed: int
    memory_available: int
    memory_total: int
    folder: Path
    notes: list[str] = field(default_factory=list)

    def phases(self) -> dict[str, dict[str, Any]]:
        """Per phase: units, how many are to run, bytes, FLOPs and rough seconds of those."""
        totals: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            new = {"units": 0, "to_run": 0, "bytes_on_disk": 0, "bytes_in_memory": 0, "flops": 0.0, "seconds": 0.0}
            total = totals.setdefault(row.phase, new)
            total["units"] += 1
            total["bytes_on_disk"] += row.bytes_on_disk
            total["bytes_in_memory"] = max(total["bytes_in_memory"], row.bytes_in_memory)
            if row.state in ("runs", "waits"):
                total["to_run"] += 1
                total["flops"] += row.flops
                total["seconds"] += row.seconds or 0.0
        return totals

    @property
    def seconds(self) -> float:
        """Rough seconds of all that is to run."""
        return sum(row.seconds or 0.0 for row in self.rows if row.state in ("runs", "waits"))

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "run": str(self.folder),
            "units": [asdict(row) for row in self.rows],
            "phases": self.phases(),
            "disk": {**asdict(self.disk), "short_by": self.disk.short_by},
            "memory": {
                "needed": self.memory_needed,
                "available": self.memory_available,
                "total": self.memory_total,
            },
            "time": {
                "seconds": self.seconds,
                "label": "rough",
                "flops_per_second": self.rate.effective,
                "source": self.rate.source,
            },
            "notes": self.notes,
        }

    def refusal(self) -> MechstudyError | None:
        """Why the disk cannot hold it, by how much, and what to change; None where it can."""
        return disk_refusal(self.disk, self.folder, self.rows)


def make_plan(run: Run, targets: Sequence[str] | None = None, rate: Rate | None = None) -> Plan:
    """The plan of a study's units against what is on disk. Loads no weights and no torch."""
    evaluation = run.evaluate(targets)
    rate = rate or measured_rate(run.options.device)
    rows = [_row(evaluation, name, rate) for name in run.graph.order]
    to_run = [row.bytes_in_memory for row in rows if row.state in ("runs", "waits")]
    largest = sorted(to_run, reverse=True)[: run.options.max_parallel]
    return Plan(
        rows,
        rate,
        disk_need(evaluation, run.folder.path, run.options.quota),
        sum(largest),
        available_memory_bytes(),
        total_memory_bytes(),
        run.folder.path,
    )


def disk_need(evaluation: Evaluation, folder: Path, quota: int | None = None) -> Disk:
    """Bytes that the units to run will write, at the fullest moment, and bytes free where the run lies."""
    as_said = _peak_bytes(evaluation, lambda unit: unit.retention == "discard")
    keeping = _peak_bytes(evaluation, lambda unit: False)
    discarding = _peak_bytes(evaluation, lambda unit: bool(unit.discard_patterns))
    left = None if quota is None else Quota(quota, folder / ARTIFACTS).left(finished=True)
    return Disk(as_said, keeping, discarding, free_bytes(folder), left)


def disk_refusal(disk: Disk, folder: Path, rows: Sequence[PlanRow] = ()) -> MechstudyError | None:
    """The error that says by how much the disk is too small; None when it is not."""
    if not disk.short_by:
        return None
    facts = {
        "needed": f"{human(disk.needed)} at the fullest moment, and {human(_SPARE)} to spare",
        "free": human(disk.free),
    }
    if disk.quota_left is not None:
        facts["quota"] = f"{human(disk.quota_left)} left of storage.quota"
    if rows:
        largest = max(rows, key=lambda row: row.bytes_on_disk)
        facts["largest"] = f"{largest.unit}, {human(largest.bytes_on_disk)}"
    fix = "smaller corpus.tokens or dictionaries.layers_per_pass, dictionaries.store_dtype: int8 or source: stream"
    fix += ", or --out on another disk" if disk.quota_left is None else ", or a larger storage.quota"
    if disk.needed_discarding < disk.needed:
        fix = f"storage.activations: discard (needs {human(disk.needed_discarding)}), {fix}"
    tight = "storage.quota" if disk.needed + _SPARE <= disk.free else "the disk"
    what = f"{tight} is too small for this study by {human(disk.short_by)}"
    return MechstudyError(what, where=str(folder), facts=facts, fix=fix)


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk where the folder is or will be."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def measured_rate(device: str = "cpu") -> Rate:
    """FLOP/s of a float32 matrix product on this machine's CPU, or an assumption for a GPU."""
    if device != "cpu" and (device.startswith("cuda") or shutil.which("nvidia-smi")):
        return Rate(_ASSUMED_GPU_RATE, f"assumed {_ASSUMED_GPU_RATE / 1e12:.0f} TFLOP/s of a GPU")
    import numpy

    size = 768
    a = numpy.ones((size, size), dtype=numpy.float32)
    best, end = float("inf"), time.perf_counter() + _MEASURE_SECONDS
    while (began := time.perf_counter()) < end:
        a @ a
        best = min(best, time.perf_counter() - began)
    rate = 2 * size**3 / best
    return Rate(rate, f"{rate / 1e9:.0f} GFLOP/s measured with a {size} x {size} float32 matrix product")


def human(n: float) -> str:
    """Bytes for people: ``1.25 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 1000 or unit == "TB":
            break
        n /= 1000
    return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"


def _row(evaluation: Evaluation, name: str, rate: Rate) -> PlanRow:
    node = evaluation.nodes[name]
    unit, estimate = node.unit, node.unit.estimate
    seconds: float | None = estimate.flops / rate.effective if estimate.flops else None
    size = estimate.bytes_on_disk
    if node.stopped is not None:
        state = "stopped"
    elif node.must_run:
        state = "waits" if any(evaluation.nodes[s].must_run for s in evaluation.graph.upstream(name)) else "runs"
    elif node.artifact is not None:
        state = "done"
        seconds = node.artifact.manifest.get("seconds")
        gone = node.artifact.manifest.get("discarded", ())
        size = sum(file["size"] for name, file in node.artifact.manifest["files"].items() if name not in gone)
    else:
        state = "not asked for"
    return PlanRow(
        name,
        unit.phase,
        state,
        dict(estimate.shapes),
        estimate.note,
        size,
        estimate.exact or state == "done",
        estimate.bytes_in_memory,
        estimate.flops,
        seconds,
        unit.retention,
        node.stopped,
    )


def _peak_bytes(evaluation: Evaluation, discards: Any) -> int:
    """Bytes on disk at the fullest moment of the units to run, in order, payload deleted after its last consumer."""
    last: dict[str, str] = {}
    to_run = evaluation.to_run
    for name in to_run:
        for source in evaluation.graph.units[name].inputs.values():
            if not evaluation.graph.units[name].optional_inputs:
                last[source] = name
    held = peak = 0
    for name in to_run:
        held += _bytes(evaluation.graph.units[name])
        peak = max(peak, held)
        for source in set(evaluation.graph.units[name].inputs.values()):
            unit = evaluation.graph.units[source]
            if last.get(source) == name and source in to_run and discards(unit):
                held -= _bytes(unit)
    return peak


def _bytes(unit: Unit) -> int:
    return unit.estimate.bytes_on_disk
