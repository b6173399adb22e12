"""Tables of states, for a terminal or a file, and JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mechstudy.core.progress import duration
from mechstudy.runner.status import Status

USAGE_PAGE = "usage.html"  # of the report
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
    """Standard output; where it is no terminal as wide as COLUMNS says, else so wide, so that nothing is cut."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(highlight=False, width=None if known else width)


def fits(out: Console, table: Table) -> bool:
    """Whether the table is as wide as it would be and nothing in it is cut."""
    return Measurement.get(out, out.options.update(max_width=10_000), table).maximum <= out.width


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    print(json.dumps(value, indent=2))


def show_status(status: Status, folder: Path) -> None:
    """The table of units, then who runs it and the counts."""
    out = console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("unit", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("artifact or reason", overflow="fold")
    for unit in status.units:
        job = f"job {unit.job}" if unit.job and unit.status != "done" else ""
        where = "; ".join(text for text in (unit.artifact or "", job, unit.detail) if text)
        style = COLOURS.get(unit.status, "")
        table.add_row(Text(unit.name), Text(unit.status, style=style), _time(unit.seconds, measured=True), Text(where))
    out.print(table)
    holder = status.holder
    counts = ", ".join(f"{n} {name}" for name, n in status.counts().items())
    out.print(Text(f"{folder}: {counts} ({status.counts().get('done', 0)} of {len(status.units)} units)"))
    if holder is not None:
        out.print(Text(f"running: process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"))
    for note in status.notes:
        out.print(Text(f"note: {note}"))
    if (line := where_to_read(folder)) is not None:
        out.print(Text(line), soft_wrap=True)


def where_to_read(folder: Path) -> str | None:
    """A line that says where the report is, and its page of what the machine was used for; None without a report."""
    pages = {"report": folder / "report" / "index.html", "usage": folder / "report" / USAGE_PAGE}
    there = [f"{name}: {page}" for name, page in pages.items() if page.exists()]
    return ", ".join(there) or None


def _time(seconds: float | None, *, measured: bool = False) -> str:
    if seconds is None:
        return "-"
    return duration(seconds) if measured else f"~{duration(seconds)}"
