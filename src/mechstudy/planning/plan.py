"""`mechstudy plan`: what every unit, every phase and a whole study will take, before anything is loaded. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechstudy.machine.memory import available_memory_bytes, total_memory_bytes
from mechstudy.planning.calibration import Calibration, joint_spread, read_calibration, why_uncalibrated
from mechstudy.planning.disk import Disk, disk_need, kept_bytes
from mechstudy.planning.hardware import Hardware
from mechstudy.planning.machine import this_machine
from mechstudy.planning.memory import Footprint, footprints, processes_of
from mechstudy.planning.schedule import Timetable, timetable
from mechstudy.planning.times import held_bytes, kind_of, seconds_of
from mechstudy.runner.run import Run
from mechstudy.study.dag import Evaluation, Node

if TYPE_CHECKING:
    from mechstudy.study.slurm_config import SlurmConfig

UNCALIBRATED = 1.0  # half-width of seconds nobody measured, as a share: up to twice as long
TO_RUN = ("runs", "waits")


@dataclass(frozen=True)
class PlanRow:
    """One unit. ``state``: done, runs (at once), waits (for its inputs), stopped (by a gate), not asked for.

    ``seconds`` are those it took where it is done. Memory is the process's (on a GPU: the device's) with the model in
    the study's own precisions (``peak``), all in float32, and all in bfloat16; of all processes that share the unit.
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
    payload: dict[str, int] = field(default_factory=dict)
    reason: str | None = None

    @property
    def to_run(self) -> bool:
        return self.state in TO_RUN


@dataclass(frozen=True)
class Total:
    """Of one phase, or of all: of the units to run but for ``units``, ``bytes_*`` and ``memory``, which are of all."""

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
    ``uncalibrated`` says why pilots that were run are not gone by.
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
        """Of all that is to run, one after another."""
        return sum(row.seconds or 0.0 for row in self.rows if row.to_run)

    @property
    def interval(self) -> tuple[float, float]:
        """90% interval of `seconds` where pilots were run; a guess elsewhere."""
        by_kind: dict[str, tuple[float, float]] = {}
        for row in self.rows:
            if row.to_run:
                seconds, _ = by_kind.get(row.kind, (0.0, 0.0))
                by_kind[row.kind] = (seconds + (row.seconds or 0.0), row.spread)
        half = joint_spread(by_kind.values())
        return max(0.0, self.seconds - half), self.seconds + half

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
        return self._total(self.rows)

    def _total(self, rows: Sequence[PlanRow]) -> Total:
        todo = [row for row in rows if row.to_run]
        durations = {row.unit: row.seconds or 0.0 for row in todo}
        parallel = self.table if len(rows) == len(self.rows) else timetable(durations, self.upstream.__getitem__, None)
        if rows and len(rows) < len(self.rows) and (width := self._width(rows[0].phase)) is not None:
            parallel = timetable(durations, self.upstream.__getitem__, width)
        seconds = sum(durations.values())
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

    def _width(self, phase: str) -> int | None:
        return self.caps.get(phase, self.width)

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
    run: Run,
    targets: Sequence[str] | None = None,
    hardware: Hardware | None = None,
    calibration: Calibration | None = None,
    slurm: SlurmConfig | None = None,
    processes: Mapping[str, int] | None = None,
    apart: bool = False,
) -> Plan:
    """The plan of a study's units against what is on disk.

    Args:
        hardware: where it is to run; this machine if not given.
        calibration: what pilots said; that of the run's folder if not given and it runs here.
        slurm: how many units of a phase run at once on a cluster.
        processes: unit -> how many share it; as ``compute.world_size`` says if not given.
        apart: each unit is a job of its own here, too, and starts a process.
    """
    evaluation = run.evaluate(targets)
    here = hardware is None
    hardware = hardware or this_machine(run.options.device, run.options.total_threads)
    why = None
    if calibration is None and (here or hardware.is_here):
        calibration = read_calibration(run.folder.path, run.options.total_threads)
        why = why_uncalibrated(run.folder.path, run.options.total_threads)
    if calibration is not None and calibration.auto is not None:
        hardware = hardware.model_copy(update={"auto": calibration.auto})
    together = hardware.is_here and run.options.max_parallel == 1 and not apart
    if processes is None:
        processes = processes_of(evaluation, run.options.world_size)
    memory = footprints(evaluation, hardware, calibration, together=together, processes=processes)
    rows = _rows(evaluation, hardware, calibration, memory, together=together)
    caps = _caps(slurm, [row.phase for row in rows])
    width = run.options.max_parallel if hardware.is_here else None
    upstream = {name: evaluation.graph.upstream(name) for name in evaluation.graph.order}
    durations = {row.unit: row.seconds or 0.0 for row in rows if row.to_run}
    table = timetable(durations, upstream.__getitem__, width)
    if caps and width is None:
        table = _capped(rows, upstream, caps)
    return Plan(
        rows,
        hardware,
        calibration,
        disk_need(evaluation, run.folder.path, run.options.quota),
        available_memory_bytes(),
        total_memory_bytes(),
        width,
        table,
        run.folder.path,
        upstream,
        caps,
        uncalibrated=why,
    )


def _rows(
    evaluation: Evaluation,
    hardware: Hardware,
    calibration: Calibration | None,
    memory: Mapping[str, Footprint],
    *,
    together: bool,
) -> list[PlanRow]:
    """One row per unit. ``together``: in one process, which keeps models loaded and pays once what is paid once."""
    rows = []
    loaded: set[str] = set()
    seen: set[str] = set()
    for name, node in evaluation.nodes.items():
        estimate, kind = node.unit.estimate, kind_of(node.unit)
        took = seconds_of(estimate, hardware, loaded if together else ())
        fit = None if calibration is None else calibration.of(kind)
        if fit is None:
            seconds = took.work + took.load + hardware.unit_seconds
            spread = UNCALIBRATED
        else:
            seconds = fit.fixed + fit.factor * took.work + took.load
            seconds += fit.once if kind not in seen or not together else 0.0
            spread = fit.spread
        if not together:
            seconds += hardware.startup_seconds
        if node.must_run:
            loaded.update(held_bytes(estimate, hardware))
            seen.add(kind)
        rows.append(_row(evaluation, name, node, seconds, spread, memory[name]))
    return rows


def _row(
    evaluation: Evaluation, name: str, node: Node, seconds: float, spread: float, memory: Footprint
) -> PlanRow:  # fmt: skip
    unit, estimate = node.unit, node.unit.estimate
    size, kept, known = estimate.bytes_on_disk, kept_bytes(unit), estimate.exact
    took: float | None = seconds
    if node.stopped is not None:
        state = "stopped"
    elif node.must_run:
        state = "waits" if any(evaluation.nodes[s].must_run for s in evaluation.graph.upstream(name)) else "runs"
    elif node.artifact is not None:
        state, known = "done", True
        took = node.artifact.manifest.get("seconds")
        gone = node.artifact.manifest.get("discarded", ())
        size = kept = sum(file["size"] for file_, file in node.artifact.manifest["files"].items() if file_ not in gone)
    else:
        state = "not asked for"
    return PlanRow(
        unit=name,
        phase=unit.phase,
        kind=kind_of(unit),
        state=state,
        shapes=dict(estimate.shapes),
        note=estimate.note,
        bytes_on_disk=size,
        bytes_kept=kept,
        exact=known,
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
    """How many units of each phase run at once, where the study says so."""
    if slurm is None:
        return {}
    found = {phase: slurm.of_phase(phase).concurrent for phase in dict.fromkeys(phases)}
    return {phase: n for phase, n in found.items() if n is not None}


def _capped(rows: Sequence[PlanRow], upstream: Mapping[str, tuple[str, ...]], caps: Mapping[str, int]) -> Timetable:
    """As many units as can run, but of some phases only so many: each of those waits for one before it, too."""
    durations = {row.unit: row.seconds or 0.0 for row in rows if row.to_run}
    after = {name: list(sources) for name, sources in upstream.items()}
    by_phase: dict[str, list[str]] = {}
    for row in rows:
        if row.to_run and row.phase in caps:
            earlier = by_phase.setdefault(row.phase, [])
            if len(earlier) >= caps[row.phase]:
                after[row.unit].append(earlier[-caps[row.phase]])
            earlier.append(row.unit)
    return timetable(durations, after.__getitem__, None)
