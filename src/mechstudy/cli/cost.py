"""`cost`: planned and spent resources as tables; in a narrow terminal a wide table is printed in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mechstudy import planning, runner
from mechstudy.cli.options import HardwareName, Json, Out, Sets, StudyFile, overrides
from mechstudy.cli.run import nothing_has_run
from mechstudy.cli.show import console, phase_table, print_fitting, print_json
from mechstudy.cli.slurm import as_submitted
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human

if TYPE_CHECKING:
    Columns = Sequence[tuple[str, Callable[[runner.PhaseCost], str]]]


def cost(
    study: StudyFile, sets: Sets = None, out: Out = None, hardware: HardwareName = None, as_json: Json = False
) -> None:
    """Show what the study has taken so far beside the plan, phase by phase.

    From the records of finished units, and for submitted studies from Slurm's accounting, which includes jobs that
    were requeued or lost. Without --set, a submitted study is shown with the overrides of its submission.

    [dim]mechstudy cost study.yaml --json[/]
    """
    opened = as_submitted(study, overrides(sets), out)
    spent = runner.cost_of(runner.run_of(opened), planning.asked_hardware(opened.study.compute, hardware))
    if as_json:
        print_json(spent.as_json())
    elif spent.total.done or (spent.total.jobs and spent.total.jobs.jobs):
        show_cost(spent, opened.folder)
    else:
        raise nothing_has_run(opened.folder, opened.file)


def show_cost(cost: runner.Cost, folder: Path) -> None:
    """Prints planned and spent time, memory and bytes per phase, Slurm's accounting, and the differences."""
    out = console()
    phases = [*cost.phases, cost.total]
    if cost.total.done:
        _print(out, phases, [_TIME, _ROOM])
    if cost.accounted:
        _print(out, [phase for phase in phases if phase.jobs is not None and phase.jobs.jobs], [_JOBS, _USED])
    for line in _lines(cost, folder):
        out.print(Text(line), soft_wrap=True)


def _of_done(text: Callable[[runner.PhaseCost], str]) -> Callable[[runner.PhaseCost], str]:
    """The text for phases with finished units."""
    return lambda phase: text(phase) if phase.done else "-"


def _of_jobs(text: Callable[[runner.Attempts], str]) -> Callable[[runner.PhaseCost], str]:
    return lambda phase: text(phase.jobs or runner.Attempts())


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


def _print(out: Console, phases: Sequence[runner.PhaseCost], parts: Sequence[Columns]) -> None:
    def numbers(columns: Columns) -> Table:
        names = [phase.phase for phase in phases]
        return phase_table(names, [name for name, _ in columns], [[text(p) for _, text in columns] for p in phases])

    print_fitting(out, numbers([column for part in parts for column in part]), [numbers(part) for part in parts])


def _lines(cost: runner.Cost, folder: Path) -> list[str]:
    total, hardware = cost.total, cost.hardware
    by = "not calibrated" if cost.calibration is None else f"calibrated {cost.calibration.finished}"
    lines = [f"planned: for {hardware.name}, {by}; of the finished units"]
    if total.payload_files:
        right = total.payload_files - total.payload_wrong
        lines.append(f"disk:    {right} of {total.payload_files} files of static shape have exactly the planned bytes")
    lines += [f"         {name}: planned {size:,}, is {actual}" for name, (size, actual) in cost.wrong.items()]
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
    return [*lines, f"folder:  {folder}", *(f"note:    {note}" for note in cost.notes)]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"x{value:.2f}"
