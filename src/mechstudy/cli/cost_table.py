"""What was planned and what was spent, as tables; of a narrow terminal each table is two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mechstudy.cli.show import console, fits
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.runner.cost import Cost, PhaseCost
from mechstudy.runner.measured_cost import Attempts

Columns = Sequence[tuple[str, Callable[[PhaseCost], str]]]


def show_cost(cost: Cost, folder: Path) -> None:
    """Per phase: time, memory and bytes, planned and spent; then what Slurm says, and what differs."""
    out = console()
    phases = [*cost.phases, cost.total]
    if cost.total.done:
        _print(out, phases, [_TIME, _ROOM])
    if cost.accounted:
        _print(out, [phase for phase in phases if phase.jobs is not None and phase.jobs.jobs], [_JOBS, _USED])
    for line in _lines(cost, folder):
        out.print(Text(line), soft_wrap=True)


def _of_done(text: Callable[[PhaseCost], str]) -> Callable[[PhaseCost], str]:
    """Of phases of which something is done."""
    return lambda phase: text(phase) if phase.done else "-"


def _of_jobs(text: Callable[[Attempts], str]) -> Callable[[PhaseCost], str]:
    return lambda phase: text(phase.jobs or Attempts())


_TIME: Columns = (
    ("done", lambda p: f"{p.done}/{p.units}"),
    ("time\nplanned", _of_done(lambda p: duration(p.planned_seconds))),
    ("time\nspent", _of_done(lambda p: duration(p.seconds))),
    ("", lambda p: _ratio(p.time_ratio)),
)
_ROOM: Columns = (
    ("memory\nplanned", _of_done(lambda p: human(p.planned_peak_bytes))),
    ("memory\nspent", lambda p: human(p.peak_bytes) if p.peak_bytes else "-"),
    ("", lambda p: _ratio(p.memory_ratio)),
    ("disk\nplanned", _of_done(lambda p: human(p.planned_bytes))),
    ("disk\nspent", _of_done(lambda p: human(p.bytes_published))),
)
_JOBS: Columns = (
    ("jobs", _of_jobs(lambda j: str(j.jobs))),
    ("re-\nqueued", _of_jobs(lambda j: str(j.requeued))),
    ("failed", _of_jobs(lambda j: str(j.failed))),
    ("can-\ncelled", _of_jobs(lambda j: str(j.cancelled))),
    ("queue", _of_jobs(lambda j: duration(j.waited_seconds))),
    ("wall", _of_jobs(lambda j: duration(j.seconds))),
    ("of it\nlost", _of_jobs(lambda j: duration(j.lost_seconds))),
)
_USED: Columns = (
    ("GPU-\nhours", _of_jobs(lambda j: f"{j.gpu_seconds / 3600:.3g}")),
    ("CPU-\nhours", _of_jobs(lambda j: f"{j.cpu_seconds / 3600:.3g}")),
    ("CPU\nused", _of_jobs(lambda j: f"{j.cpu_seconds_used / j.cpu_seconds if j.cpu_seconds else 0.0:.0%}")),
    ("memory", _of_jobs(lambda j: human(j.peak_rss_bytes))),
)


def _print(out: Console, phases: Sequence[PhaseCost], parts: Sequence[Columns]) -> None:
    """All columns in one table where they fit, else a table for each part."""
    whole = _table(phases, [column for part in parts for column in part])
    for table in [whole] if fits(out, whole) else [_table(phases, part) for part in parts]:
        out.print(table)


def _table(phases: Sequence[PhaseCost], columns: Columns) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for phase in phases:
        if phase is phases[-1]:
            table.add_section()
        table.add_row(phase.phase, *(text(phase) for _, text in columns))
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
