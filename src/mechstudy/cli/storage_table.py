"""What `clean` found, as a table."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mechstudy.archive.clean import Cleaned, Entry
from mechstudy.cli.show import console
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human


def show_clean(found: Cleaned, *, really: bool) -> None:
    """The table, and a line of what it comes to."""
    out = console()
    going, staying = found.going, [entry for entry in found.entries if entry.kept is not None]
    if found.entries:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("what", "where"):
            table.add_column(name, overflow="fold")
        for name in ("frees", "to make again"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("stays, because", overflow="fold")
        for entry in [*going, *staying]:
            table.add_row(
                Text(entry.what), Text(entry.name), human(entry.bytes), _time(entry), Text(entry.kept or "")
            )  # fmt: skip
        out.print(table)
    for name, why in found.failed:
        out.print(Text(f"could not be deleted: {name}: {why}"))
    seconds = sum(entry.seconds or 0.0 for entry in going)
    again = f"; making all of it again took {duration(seconds)}" if seconds else ""
    if really:
        out.print(Text(f"{human(found.freed)} freed{again}"))
    elif going:
        out.print(Text(f"{human(sum(entry.bytes for entry in going))} would be freed{again}. --yes deletes it"))
    else:
        out.print(Text("nothing to delete"))


def _time(entry: Entry) -> str:
    return "-" if entry.seconds is None else duration(entry.seconds)
