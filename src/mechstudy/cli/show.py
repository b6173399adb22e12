"""Tables for a terminal or a file, and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mechstudy import runner
from mechstudy.core.progress import duration

_FILE_WIDTH = 140  # columns where there is no terminal to ask
COLOURS = {
    "done": "green",
    "runs": "cyan",
    "running": "cyan",
    "queued": "blue",
    "waits": "",
    "pending": "",
    "stopped": "yellow",
    "failed": "red",
}


def console(width: int = _FILE_WIDTH) -> Console:
    """Standard output, as wide as the terminal or COLUMNS says, else ``width`` columns."""
    has_width = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(highlight=False, width=None if has_width else width)


def print_json(value: Any) -> None:
    """Prints indented JSON."""
    print(json.dumps(value, indent=2))


def table(*columns: str) -> Table:
    """An empty table; ``>`` before a column's name aligns it to the right, ``~`` folds long cells."""
    empty = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        folds = column.startswith("~")
        right = column.startswith(">")
        empty.add_column(
            column.lstrip("~>"),
            justify="right" if right else "left",
            no_wrap=not folds,
            overflow="fold" if folds else "ellipsis",
        )
    return empty


def phase_table(phases: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A row of numbers per phase; the last row, the total, stands below a line."""
    numbers = table("phase", *(f">{column}" for column in columns))
    for i, (phase, cells) in enumerate(zip(phases, rows, strict=True)):
        if i == len(phases) - 1:
            numbers.add_section()
        numbers.add_row(phase, *cells)
    return numbers


def print_fitting(out: Console, whole: Table, parts: Sequence[Table]) -> None:
    """Prints the whole table if none of its cells would be cut, else its parts."""
    fits = Measurement.get(out, out.options.update(max_width=10_000), whole).maximum <= out.width
    for part in [whole] if fits else parts:
        out.print(part)


def time_text(seconds: float | None, *, measured: bool = True) -> str:
    """``3m12s``, ``~3m12s`` for an estimate, ``-`` where nothing is known."""
    if seconds is None:
        return "-"
    return duration(seconds) if measured else f"~{duration(seconds)}"


def show_status(status: runner.Status, folder: Path) -> None:
    """Prints the table of units, the process that runs them, and counts."""
    out = console()
    units = table("~unit", "status", ">time", "~artifact or reason")
    for unit in status.units:
        job = f"job {unit.job}" if unit.job and unit.status != "done" else ""
        where = "; ".join(text for text in (unit.artifact or "", job, unit.detail) if text)
        state = Text(unit.status, style=COLOURS.get(unit.status, ""))
        units.add_row(Text(unit.name), state, time_text(unit.seconds), Text(where))
    out.print(units)
    holder = status.holder
    counts = ", ".join(f"{n} {name}" for name, n in status.counts().items())
    out.print(Text(f"{folder}: {counts} ({status.counts().get('done', 0)} of {len(status.units)} units)"))
    if holder is not None:
        out.print(Text(f"running: process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"))
    for note in status.notes:
        out.print(Text(f"note: {note}"))
    if (line := report_pages(folder)) is not None:
        out.print(Text(line), soft_wrap=True)


def report_pages(folder: Path) -> str | None:
    """One line with the paths of the report and of its usage page; None without a report."""
    pages = {"report": folder / "report" / "index.html", "usage": folder / "report" / "usage.html"}
    return ", ".join(f"{name}: {page}" for name, page in pages.items() if page.exists()) or None
