"""Tables of plans, states and tests, for a terminal or a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mechstudy.core.progress import duration
from mechstudy.execution.plan import Plan, PlanRow, human
from mechstudy.execution.status import Status

_FILE_WIDTH = 140  # columns where there is no terminal to ask
_COLOURS = {
    "done": "green",
    "runs": "cyan",
    "running": "cyan",
    "waits": "",
    "pending": "",
    "stopped": "yellow",
    "failed": "red",
}


def console() -> Console:
    """Standard output; wide where it is no terminal, so that nothing is cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    print(json.dumps(value, indent=2))


def show_plan(plan: Plan) -> None:
    """The table of units, the totals per phase, and what disk and memory say."""
    out = console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("unit", "state", "what"):
        table.add_column(name, overflow="fold")
    for name in ("disk", "memory", "FLOPs", "time (rough)"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, units in _alike(plan.rows):
        shapes = ", ".join(f"{name} {shape}" for name, shape in row.shapes.items())
        what = row.reason or "; ".join(text for text in (row.note, shapes) if text)
        if len(units) > 1:
            what = f"{len(units)} units, each: {what}"
        disk = human(row.bytes_on_disk) if row.bytes_on_disk else "-"
        table.add_row(
            Text(_together(row.phase, units)),
            Text(row.state, style=_COLOURS.get(row.state, "")),
            Text(what),
            disk if row.exact or disk == "-" else f"~{disk}",
            human(row.bytes_in_memory) if row.bytes_in_memory else "-",
            f"{row.flops:.2g}" if row.flops else "-",
            _time(row.seconds, measured=row.state == "done"),
        )
    out.print(table)
    totals = Table(box=SIMPLE_HEAD, pad_edge=False)
    totals.add_column("phase")
    for name in ("units", "to run", "disk", "memory", "FLOPs to do", "time (rough)"):
        totals.add_column(name, justify="right", no_wrap=True)
    for phase, total in plan.phases().items():
        totals.add_row(
            phase,
            str(total["units"]),
            str(total["to_run"]),
            human(total["bytes_on_disk"]),
            human(total["bytes_in_memory"]),
            f"{total['flops']:.2g}" if total["flops"] else "-",
            _time(total["seconds"] or None),
        )
    out.print(totals)
    for line in _plan_lines(plan):
        out.print(Text(line))


def _alike(rows: Iterable[PlanRow]) -> list[tuple[PlanRow, list[str]]]:
    """Neighbouring rows that differ in nothing but the unit's name, as one row and its units."""
    found: list[tuple[PlanRow, list[str]]] = []
    for row in rows:
        if found and row.state != "done" and replace(found[-1][0], unit=row.unit) == row:
            found[-1][1].append(row.unit)
        else:
            found.append((row, [row.unit]))
    return found


def _together(phase: str, units: Sequence[str]) -> str:
    """``train[0,7,11]`` of train[0], train[7], train[11]."""
    if len(units) == 1:
        return units[0]
    keys = [unit[len(phase) + 1 : -1] for unit in units]
    return f"{phase}[{','.join(keys)}]" if all(key.isdecimal() for key in keys) else "\n".join(units)


def _plan_lines(plan: Plan) -> list[str]:
    disk = plan.disk
    kept = f"{human(disk.needed_keeping)} with storage.activations: keep, {human(disk.needed_discarding)} with discard"
    if disk.needed_keeping == disk.needed_discarding:
        kept = "all layers are captured in one pass, so keeping or discarding them makes no difference to that"
    lines = [
        f"disk:   {human(disk.needed)} to write at the fullest moment ({kept}); {human(disk.free)} free",
        f"memory: {human(plan.memory_needed)} at the most, and what Python and torch take; "
        f"{human(plan.memory_available)} available of {human(plan.memory_total)}",
        f"time:   {duration(plan.seconds)}, rough: half of {plan.rate.source}",
        f"run:    {plan.folder}",
    ]
    if plan.memory_needed > plan.memory_available:
        lines.append("note:   the memory will hardly do; `mechstudy validate` measures it")
    return [*lines, *(f"note:   {note}" for note in plan.notes)]


def show_status(status: Status, folder: Path) -> None:
    """The table of units, then who runs it and the counts."""
    out = console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("unit", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("artifact or reason", overflow="fold")
    for unit in status.units:
        where = "; ".join(text for text in (unit.artifact or "", unit.detail) if text)
        style = _COLOURS.get(unit.status, "")
        table.add_row(Text(unit.name), Text(unit.status, style=style), _time(unit.seconds, measured=True), Text(where))
    out.print(table)
    holder = status.holder
    counts = ", ".join(f"{n} {name}" for name, n in status.counts().items())
    out.print(Text(f"{folder}: {counts}"))
    if holder is not None:
        out.print(Text(f"running: process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"))


def _time(seconds: float | None, *, measured: bool = False) -> str:
    if seconds is None:
        return "-"
    return duration(seconds) if measured else f"~{duration(seconds)}"
