"""`mechstudy plan`: time, memory and disk of every unit, every phase and the whole study. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechstudy.machine.memory import available_memory_bytes, total_memory_bytes
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.planning.calibration import Calibration, Fit, joint_spread, read_calibration
from mechstudy.planning.cost_model import Footprint, Timetable, footprints, held_bytes, kind_of, seconds_of, timetable
from mechstudy.planning.disk import Disk, disk_need, kept_bytes
from mechstudy.planning.hardware import Hardware
from mechstudy.planning.machine import this_machine
from mechstudy.study.dag import Evaluation, Node

if TYPE_CHECKING:
    from mechstudy.study.slurm_config import SlurmConfig

UNCALIBRATED = 1.0  # half-width of the interval without pilots, as a share of the seconds


@dataclass(frozen=True)
class PlanRow:
    """One unit. ``state``: done, runs (at once), waits (for its inputs), stopped (by a gate), not asked for.

    ``seconds`` of a unit that is done are measured. Memory is the process's (on a GPU: the device's), summed over the
    processes that share the unit.
    """

    unit: str
    phase: str
    kind: str
    state: str
    shapes: dict[str, str]
    note: str
    bytes_on_disk: int
    bytes_kept: int
    exact: bool
    bytes_in_memory: int
    memory: Footprint
    flops: float
    seconds: float | None
    spread: float
    retention: str
    resumes: bool = False
    payload: dict[str, int] = field(default_factory=dict)
    reason: str | None = None

    @property
    def to_run(self) -> bool:
        """Whether the unit still has to run."""
        return self.state in ("runs", "waits")


@dataclass(frozen=True)
class Total:
    """Totals of one phase, or of the study.

    ``units``, ``bytes_*`` and ``memory`` are of all units, the others of those that still have to run.
    """

    units: int
    to_run: int
    flops: float
    seconds: float
    gpu_hours: float
    parallel_seconds: float
    at_once: int
    bytes_on_disk: int
    bytes_kept: int
    memory: Footprint
    service_units: float
    price: float | None


@dataclass(frozen=True)
class Plan:
    """A study's plan; `as_json` is what ``--json`` prints.

    ``width`` is how many units run at once, None for as many as can (each a job of its own on a cluster).
    ``uncalibrated`` says why existing pilots are not used.
    """

    rows: list[PlanRow]
    hardware: Hardware
    calibration: Calibration | None
    disk: Disk
    memory_available: int
    memory_total: int
    width: int | None
    table: Timetable
    folder: Path
    upstream: Mapping[str, tuple[str, ...]]
    caps: Mapping[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    uncalibrated: str | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the remaining units, one after another."""
        return sum(row.seconds or 0.0 for row in self.rows if row.to_run)

    @property
    def interval(self) -> tuple[float, float]:
        """The 90% interval of `seconds` if there are pilots; a rough range otherwise."""
        by_kind: dict[str, tuple[float, float]] = {}
        for row in self.rows:
            if row.to_run:
                seconds, _ = by_kind.get(row.kind, (0.0, 0.0))
                by_kind[row.kind] = (seconds + (row.seconds or 0.0), row.spread)
        half = joint_spread(by_kind.values())
        return max(0.0, self.seconds - half), self.seconds + half

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each unit's artifact."""
        return {row.unit: row.bytes_on_disk for row in self.rows}

    @property
    def memory_needed(self) -> int:
        """Bytes at the worst moment: the largest units that run at once."""
        needs = sorted((row.memory.peak for row in self.rows if row.to_run), reverse=True)
        return sum(needs[: self.width or 1])

    def phases(self) -> dict[str, Total]:
        """Totals of each phase, in order."""
        names = dict.fromkeys(row.phase for row in self.rows)
        return {name: self._total([row for row in self.rows if row.phase == name]) for name in names}

    @property
    def total(self) -> Total:
        """Totals of the study."""
        return self._total(self.rows)

    def _total(self, rows: Sequence[PlanRow]) -> Total:
        todo = [row for row in rows if row.to_run]
        parallel, seconds = self.table, sum(row.seconds or 0.0 for row in todo)
        if len(rows) < len(self.rows):
            parallel = timetable(_durations(todo), self.upstream, self.caps.get(rows[0].phase, self.width))
        hours = seconds / 3600 if self.hardware.device == "cuda" else 0.0
        units = hours * self.hardware.su_per_gpu_hour
        price = None if self.hardware.price_per_su is None else units * self.hardware.price_per_su
        return Total(
            units=len(rows),
            to_run=len(todo),
            flops=sum(row.flops for row in todo),
            seconds=seconds,
            gpu_hours=hours,
            parallel_seconds=parallel.seconds,
            at_once=parallel.most,
            bytes_on_disk=sum(row.bytes_on_disk for row in rows),
            bytes_kept=sum(row.bytes_kept for row in rows),
            memory=Footprint.largest([row.memory for row in rows]),
            service_units=units,
            price=price,
        )

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        low, high = self.interval
        return {
            "run": str(self.folder),
            "hardware": self.hardware.canonical(),
            "units": [asdict(row) for row in self.rows],
            "phases": {name: asdict(total) for name, total in self.phases().items()},
            "total": asdict(self.total),
            "disk": {**asdict(self.disk), "short_by": self.disk.short_by},
            "memory": {
                "needed": self.memory_needed,
                "available": self.memory_available,
                "total": self.memory_total,
                "device": self.hardware.memory_bytes,
            },
            "time": {
                "seconds": self.seconds,
                "low": low,
                "high": high,
                "parallel_seconds": self.table.seconds,
                "at_once": self.table.most,
                "calibrated": None if self.calibration is None else self.calibration.finished,
                "uncalibrated": self.uncalibrated,
            },
            "notes": self.notes,
        }


def make_plan(
    evaluation: Evaluation,
    folder: Path,
    options: RunOptions,
    *,
    hardware: Hardware | None = None,
    calibration: Calibration | None = None,
    slurm: SlurmConfig | None = None,
    processes: Mapping[str, int] | None = None,
    apart: bool = False,
) -> Plan:
    """The plan of a study's units against what is on disk.

    Args:
        folder: the run's.
        hardware: where the study will run; default: this machine.
        calibration: fits of pilots; default: those in the run's folder, on this machine.
        slurm: how many units of a phase run at once on a cluster.
        processes: unit -> number of processes that share it; default: ``compute.world_size``.
        apart: each unit is a job with a process of its own on this machine, too.
    """
    hardware = hardware or this_machine(options.device, options.total_threads)
    why = None
    if calibration is None and hardware.is_here:
        calibration, why = read_calibration(folder, options.total_threads)
    if calibration is not None and calibration.auto is not None:
        hardware = hardware.model_copy(update={"auto": calibration.auto})
    together = hardware.is_here and options.max_parallel == 1 and not apart
    if processes is None:
        n = options.world_size if isinstance(options.world_size, int) else 1
        processes = {name: n for name, node in evaluation.nodes.items() if node.unit.phase.shares(node.unit)}
    fits = {} if calibration is None else calibration.fits
    needs = footprints(evaluation, hardware, fits, together=together, processes=processes)
    rows = _rows(evaluation, hardware, fits, needs, together=together)
    caps = _caps(slurm, [row.phase for row in rows])
    width = options.max_parallel if hardware.is_here else None
    upstream = {name: evaluation.graph.upstream(name) for name in evaluation.graph.order}
    after = _capped(rows, upstream, caps) if width is None else upstream
    table = timetable(_durations(rows), after, width)
    disk, memory = disk_need(evaluation, folder, options.quota), (available_memory_bytes(), total_memory_bytes())
    return Plan(rows, hardware, calibration, disk, *memory, width, table, folder, upstream, caps, uncalibrated=why)


def _rows(
    evaluation: Evaluation,
    hardware: Hardware,
    fits: Mapping[str, Fit],
    needs: Mapping[str, Footprint],
    *,
    together: bool,
) -> list[PlanRow]:
    """One row per unit. ``together``: in one process, which loads models and pays once-only costs a single time."""
    rows = []
    loaded: set[str] = set()
    paid: set[str] = set()  # kinds whose once-only cost is counted
    for name, node in evaluation.nodes.items():
        estimate, kind = node.unit.estimate, kind_of(node.unit)
        took = seconds_of(estimate, hardware, loaded if together else ())
        fit = fits.get(kind, Fit(1.0, hardware.unit_seconds, spread=UNCALIBRATED))
        seconds = fit.factor * took.work + took.load + fit.fixed
        seconds += fit.once if kind not in paid or not together else 0.0
        if not together:
            seconds += hardware.startup_seconds
        if node.must_run:
            loaded.update(held_bytes(estimate, hardware))
            paid.add(kind)
        rows.append(_row(evaluation, name, node, seconds, fit.spread, needs[name]))
    return rows


def _row(
    evaluation: Evaluation, name: str, node: Node, seconds: float, spread: float, memory: Footprint
) -> PlanRow:  # fmt: skip
    unit, estimate = node.unit, node.unit.estimate
    size, kept, exact = estimate.bytes_on_disk, kept_bytes(unit), estimate.exact
    took: float | None = seconds
    if node.stopped is not None:
        state = "stopped"
    elif node.must_run:
        state = "waits" if any(evaluation.nodes[s].must_run for s in evaluation.graph.upstream(name)) else "runs"
    elif node.artifact is not None:
        state, exact = "done", True
        took = node.artifact.manifest.get("seconds")
        gone = node.artifact.manifest.get("discarded", ())
        size = kept = sum(file["size"] for file_, file in node.artifact.manifest["files"].items() if file_ not in gone)
    else:
        state = "not asked for"
    return PlanRow(
        unit=name,
        phase=unit.phase.name,
        resumes=unit.phase.resumes,
        kind=kind_of(unit),
        state=state,
        shapes=dict(estimate.shapes),
        note=estimate.note,
        bytes_on_disk=size,
        bytes_kept=kept,
        exact=exact,
        bytes_in_memory=estimate.bytes_in_memory,
        memory=memory,
        flops=estimate.flops,
        seconds=took,
        spread=spread,
        retention=unit.retention,
        payload=dict(estimate.payload),
        reason=node.stopped,
    )


def _caps(slurm: SlurmConfig | None, phases: Sequence[str]) -> dict[str, int]:
    """The number of units of each phase that run at once, where the study limits it."""
    if slurm is None:
        return {}
    limits = {phase: slurm.of_phase(phase).concurrent for phase in dict.fromkeys(phases)}
    return {phase: n for phase, n in limits.items() if n is not None}


def _capped(
    rows: Sequence[PlanRow], upstream: Mapping[str, tuple[str, ...]], caps: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """What each unit waits for with limits per phase: beyond the limit, also for an earlier unit of its phase."""
    after = dict(upstream)
    for phase, n in caps.items():
        units = [row.unit for row in rows if row.to_run and row.phase == phase]
        for earlier, unit in zip(units, units[n:], strict=False):
            after[unit] += (earlier,)
    return after


def _durations(rows: Sequence[PlanRow]) -> dict[str, float]:
    return {row.unit: row.seconds or 0.0 for row in rows if row.to_run}
