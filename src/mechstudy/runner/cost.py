"""`mechstudy cost`: the plan beside what was spent, phase by phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mechstudy.planning import Plan, PlanRow, make_plan
from mechstudy.planning.calibration import Calibration, read_calibration
from mechstudy.planning.hardware import Hardware
from mechstudy.planning.machine import this_machine
from mechstudy.runner.measured_cost import Attempts, UnitReality, accounted_jobs, attempts_of, reality_of
from mechstudy.runner.run import Run
from mechstudy.study.dag import Evaluation
from mechstudy.study.run_folder import RunFolder

Row = tuple[PlanRow, UnitReality | None]  # a unit's plan, and what it took where it is done


@dataclass(frozen=True)
class PhaseCost:
    """Costs of one phase, or of all. Planned numbers cover the units that are done, so that the two can be compared.

    ``payload_*``: files whose bytes the plan says exactly, how many of them there are and how many differ. ``jobs``: of
    Slurm; ``restarts``: sessions beyond the first of each unit.
    """

    phase: str
    units: int
    done: int
    planned_seconds: float
    seconds: float
    planned_peak_bytes: int
    peak_bytes: int
    planned_bytes: int
    bytes_published: int
    bytes_now: int
    payload_files: int
    payload_wrong: int
    planned_gpu_hours: float
    gpu_hours: float
    service_units: float
    restarts: int
    jobs: Attempts | None = None

    @property
    def time_ratio(self) -> float | None:
        """Spent over planned."""
        return self.seconds / self.planned_seconds if self.planned_seconds else None

    @property
    def memory_ratio(self) -> float | None:
        """Measured over planned peak."""
        return self.peak_bytes / self.planned_peak_bytes if self.planned_peak_bytes and self.peak_bytes else None


@dataclass(frozen=True)
class Cost:
    """Planned and spent of a run.

    ``accounted`` says whether Slurm's accounting is included; ``wrong`` names payload files whose bytes differ from the
    plan, with both numbers.
    """

    phases: list[PhaseCost]
    total: PhaseCost
    hardware: Hardware
    calibration: Calibration | None
    accounted: bool
    wrong: Mapping[str, tuple[int, int | None]]
    unit_rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        rows = [
            {"unit": row.unit, "planned_seconds": row.seconds, "planned_peak_bytes": row.memory.peak}
            | ({} if done is None else {"spent": {k: v for k, v in asdict(done).items() if k != "files"}})
            for row, done in self.unit_rows
        ]
        return {
            "hardware": self.hardware.name,
            "calibrated": None if self.calibration is None else self.calibration.finished,
            "accounted": self.accounted,
            "phases": {phase.phase: _as_json(phase) for phase in self.phases},
            "total": _as_json(self.total),
            "payload_wrong": {name: list(sizes) for name, sizes in self.wrong.items()},
            "units": rows,
            "notes": self.notes,
        }


def cost_of(run: Run, hardware: Hardware | None = None, *, slurm: bool = True) -> Cost:
    """Planned and spent of a run so far."""
    done = reality_of(run.evaluate())
    plan = whole_plan(run, hardware, done)
    elements, accounted = accounted_jobs(run.folder.path) if slurm else ({}, None)
    attempts = None if accounted is None else attempts_of(elements, accounted)
    rows = [(row, done.get(row.unit)) for row in plan.rows]
    phases = [
        _phase(name, [pair for pair in rows if pair[0].phase == name], plan, attempts)
        for name in dict.fromkeys(row.phase for row in plan.rows)
    ]
    wrong = {
        f"{row.unit}/{name}": (size, spent.files.get(name))
        for row, spent in rows
        if spent is not None
        for name, size in row.payload.items()
        if spent.files.get(name) != size
    }
    notes = []
    if any(spent.in_job for spent in done.values()):
        notes.append("units were jobs: planned with the start of a process and the loading of its model for each")
    if elements and accounted is None:
        notes.append("no accounting (sacct): time in the queue and jobs that were lost are not counted")
    lost = [name for name in elements.values() if attempts is not None and name not in attempts]
    if lost:
        notes.append(f"{len(set(lost))} submitted units have no accounted job yet")
    return Cost(
        phases, _phase("total", rows, plan, attempts), plan.hardware, plan.calibration, attempts is not None, wrong,
        rows, notes,
    )  # fmt: skip


def whole_plan(run: Run, hardware: Hardware | None = None, done: Mapping[str, UnitReality] | None = None) -> Plan:
    """The plan as it was before anything ran: against a store that holds nothing.

    Args:
        done: how the units ran: threads, where all had as many; a process start and a model load for each, where they
            were jobs; memory of all processes, where several shared a unit.
    """
    options, done = run.options, done or {}
    used = {spent.threads for spent in done.values()}
    if len(used) == 1 and options.max_parallel == 1:
        options = options.replace(threads=used.pop() or options.threads)
    here = hardware or this_machine(options.device, options.total_threads)
    calibration = read_calibration(run.folder.path, options.total_threads)[0] if here.is_here else None
    empty = Evaluation(run.graph, RunFolder(run.folder.path / ".nothing").store)
    shared = {name: spent.processes for name, spent in done.items()} or None
    apart = any(spent.in_job for spent in done.values())
    return make_plan(
        empty, run.folder.path, options, hardware=here, calibration=calibration, processes=shared, apart=apart
    )


def _phase(name: str, rows: Sequence[Row], plan: Plan, attempts: Mapping[str, Attempts] | None) -> PhaseCost:
    finished = [(row, spent) for row, spent in rows if spent is not None]
    hardware = plan.hardware
    planned = sum(row.seconds or 0.0 for row, _ in finished)
    jobs = None if attempts is None else sum((attempts.get(r.unit, Attempts()) for r, _ in rows), Attempts())
    gpu = sum(spent.gpu_seconds for _, spent in finished) / 3600
    if jobs is not None and jobs.jobs:
        gpu = jobs.gpu_seconds / 3600
    on_cpu = not any(spent.gpu_seconds for _, spent in finished)
    exact = [(row.payload[file], spent.files.get(file)) for row, spent in finished for file in row.payload]
    return PhaseCost(
        phase=name,
        units=len(rows),
        done=len(finished),
        planned_seconds=planned,
        seconds=sum(spent.seconds for _, spent in finished),
        planned_peak_bytes=_most(row.memory.peak for row, _ in finished),
        peak_bytes=max(_most(s.peak_bytes for _, s in finished), jobs.peak_rss_bytes if jobs and on_cpu else 0),
        planned_bytes=sum(row.bytes_on_disk for row, _ in finished),
        bytes_published=sum(sum(spent.files.values()) for _, spent in finished),
        bytes_now=sum(spent.bytes_on_disk for _, spent in finished),
        payload_files=len(exact),
        payload_wrong=sum(planned != actual for planned, actual in exact),
        planned_gpu_hours=planned / 3600 if hardware.device == "cuda" else 0.0,
        gpu_hours=gpu,
        service_units=gpu * hardware.su_per_gpu_hour,
        restarts=sum(spent.sessions - 1 for _, spent in finished),
        jobs=jobs,
    )


def _most(values: Iterable[int]) -> int:
    return max(values, default=0)


def _as_json(phase: PhaseCost) -> dict[str, Any]:
    return asdict(phase) | {"time_ratio": phase.time_ratio, "memory_ratio": phase.memory_ratio}
