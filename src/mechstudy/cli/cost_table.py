"""What was planned and what was spent, as a table of 100 columns."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mechstudy.cli.plan_table import WIDTH
from mechstudy.cli.show import console
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.execution.budget.cost import Cost, PhaseCost


def show_cost(cost: Cost, folder: Path) -> None:
    """Per phase: time, memory and bytes, planned and spent; then what Slurm says, and what differs."""
    out = console(WIDTH)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase")
    for name in ("done", "time planned", "spent", "", "memory planned", "spent", "", "disk planned", "spent"):
        table.add_column(name, justify="right", no_wrap=len(name) < 6)
    for phase in [*cost.phases, cost.total]:
        if phase is cost.total:
            table.add_section()
        table.add_row(*_cells(phase))
    out.print(table)
    if cost.accounted:
        out.print(_jobs(cost))
    for line in _lines(cost, folder):
        out.print(Text(line))


def _cells(phase: PhaseCost) -> list[str]:
    time, memory = phase.time_ratio, phase.memory_ratio
    return [
        phase.phase,
        f"{phase.done}/{phase.units}",
        duration(phase.planned_seconds) if phase.done else "-",
        duration(phase.seconds) if phase.done else "-",
        _ratio(time),
        human(phase.planned_peak_bytes) if phase.done else "-",
        human(phase.peak_bytes) if phase.peak_bytes else "-",
        _ratio(memory),
        human(phase.planned_bytes) if phase.done else "-",
        human(phase.bytes_published) if phase.done else "-",
    ]


def _jobs(cost: Cost) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase")
    for name in (
        "jobs",
        "requeued",
        "failed",
        "queue",
        "wall",
        "of it lost",
        "GPU-hours",
        "CPU-hours",
        "CPU used",
        "memory",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for phase in [*cost.phases, cost.total]:
        jobs = phase.jobs
        if jobs is None or not jobs.jobs:
            continue
        used = jobs.cpu_seconds_used / jobs.cpu_seconds if jobs.cpu_seconds else 0.0
        table.add_row(
            phase.phase, str(jobs.jobs), str(jobs.requeued), str(jobs.failed), duration(jobs.waited_seconds),
            duration(jobs.seconds), duration(jobs.lost_seconds), f"{jobs.gpu_seconds / 3600:.3g}",
            f"{jobs.cpu_seconds / 3600:.3g}", f"{used:.0%}", human(jobs.peak_rss_bytes),
        )  # fmt: skip
    return table


def _lines(cost: Cost, folder: Path) -> list[str]:
    total, hardware = cost.total, cost.hardware
    by = "not calibrated" if cost.calibration is None else f"calibrated {cost.calibration.finished}"
    lines = [f"planned: for {hardware.name}, {by}; numbers of units that are done"]
    if total.payload_files:
        right = total.payload_files - total.payload_wrong
        lines.append(f"disk:    {right} of {total.payload_files} files of static shape have exactly the planned bytes")
    lines += [f"         {name}: planned {size:,}, is {found}" for name, (size, found) in cost.wrong.items()]
    if total.gpu_hours or total.planned_gpu_hours:
        lines.append(
            f"GPU:     {total.gpu_hours:.3g} GPU-hours spent, {total.planned_gpu_hours:.3g} planned; "
            f"{total.service_units:.3g} service units"
        )
    if total.restarts:
        lines.append(
            f"resumed: {total.restarts} times; the time of interrupted processes is "
            + ("in the table of jobs" if cost.accounted else "not in these numbers")
        )
    return [*lines, f"run:     {folder}", *(f"note:    {note}" for note in cost.notes)]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"x{value:.2f}"
