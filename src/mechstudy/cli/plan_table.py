"""The plan as tables, 100 columns wide where nobody says how wide; of a narrow terminal each table is two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mechstudy.cli.show import COLOURS, console, fits
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.planning.disk import nearest_folder
from mechstudy.planning.plan import Plan, PlanRow, Total

WIDTH = 100
_UNIT_WIDTH = 28


def show_plan(plan: Plan) -> None:
    """The units, the phases with their total, and what disk, memory, time and money say."""
    out = console(WIDTH)
    out.print(_units(plan.rows))
    for table in _phases(plan, out):
        out.print(table)
    for label, text in _lines(plan):
        table = Table.grid(padding=(0, 1))
        table.add_column(width=9, no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row(Text(f"{label}:" if label else ""), Text(text))
        out.print(table)


def _units(rows: Sequence[PlanRow]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("unit", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("what", overflow="fold")
    for name in ("disk", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, units in _alike(rows):
        shapes = ", ".join(f"{name} {shape}" for name, shape in row.shapes.items())
        what = row.reason or "; ".join(text for text in (row.note, shapes) if text)
        if len(units) > 1:
            what = f"{len(units)} units, each: {what}"
        disk = human(row.bytes_on_disk) if row.bytes_on_disk else "-"
        table.add_row(
            Text(_wrapped(_together(row.phase, units))),
            Text(row.state, style=COLOURS.get(row.state, "")),
            Text(what),
            disk if row.exact or disk == "-" else f"~{disk}",
            human(row.memory.peak) if row.memory.peak else "-",
            _time(row.seconds, measured=row.state == "done"),
        )
    return table


def _phases(plan: Plan, out: Console) -> list[Table]:
    """Work and time, then memory and disk; on a CPU in one table where it fits, since there are no GPU-hours."""
    totals = [*plan.phases().items(), ("total", plan.total)]
    work = [[str(t.units), str(t.to_run), _tflop(t.flops), _time(t.seconds or None), _parallel(t)] for _, t in totals]
    room = [
        [human(t.memory.float32), human(t.memory.bfloat16), human(t.bytes_on_disk), human(t.bytes_kept)]
        for _, t in totals
    ]
    names = [name for name, _ in totals]
    columns, more = ["units", "to do", "TFLOP", "time", "parallel"], ["fp32", "bf16", "keep", "discard"]
    rooms = _table(names, ["memory in fp32", "in bf16", "disk with keep", "with discard"], room)
    apart = [_table(names, columns, work), rooms]
    if plan.hardware.device == "cuda":
        more, room = (
            ["GPUs", "GPU-hours", "service units"],
            [[str(t.at_once or "-"), f"{t.gpu_hours:.3f}", f"{t.service_units:.3f}"] for _, t in totals],
        )
        apart.insert(1, _table(names, more, room))
    whole = _table(names, [*columns, *more], [a + b for a, b in zip(work, room, strict=True)])
    if not fits(out, whole):
        return apart
    return [whole, rooms] if plan.hardware.device == "cuda" else [whole]


def _table(names: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A row per phase, and the total below a line."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, cells in zip(names, rows, strict=True):
        if name == "total":
            table.add_section()
        table.add_row(name, *cells)
    return table


def _lines(plan: Plan) -> list[tuple[str, str]]:
    hardware, total = plan.hardware, plan.total
    low, high = plan.interval
    rates = hardware.source if hardware.is_here else "profile, see docs/budget.md for its sources"
    found = [
        ("hardware", f"{hardware.name}: {rates}"),
        ("time", f"{duration(plan.seconds)} one after another [{duration(low)}, {duration(high)}]; {_at_once(plan)}"),
        ("", _calibrated(plan)),
        ("disk", _disk(plan)),
    ]
    device = hardware.device == "cuda"
    limit = f"of {human(hardware.memory_bytes)}" + (" on the GPU" if device else "")
    if hardware.is_here and not device:
        limit = f"{human(plan.memory_available)} available of {human(plan.memory_total)}"
    found.append(("memory", f"{human(plan.memory_needed)} at the most, {limit}; fp32, bf16: with the model in it"))
    if device:
        currency = hardware.currency or "in the money of price_per_su"
        price = "" if total.price is None else f", {total.price:,.2f} {currency}"
        units = f"{total.service_units:.3g} service units ({hardware.su_per_gpu_hour:g} per GPU-hour)"
        found.append(("cost", f"{total.gpu_hours:.3g} GPU-hours, {units}{price}"))
    exact = sum(row.exact for row in plan.rows)
    found.append(("exact", f"sizes without ~ ({exact} of {len(plan.rows)} units), but for JSON beside the arrays"))
    found.append(("run", str(plan.folder)))
    if not any(row.to_run for row in plan.rows):
        found.append(("note", "nothing is left to run: what it took stands beside each unit, and in `mechstudy cost`"))
    if not device and hardware.is_here and plan.memory_needed > plan.memory_available:
        found.append(("note", "the memory will hardly do; `mechstudy validate` measures it"))
    return [*found, *(("note", note) for note in plan.notes)]


def _calibrated(plan: Plan) -> str:
    if plan.uncalibrated is not None:
        return f"not calibrated: {plan.uncalibrated}"
    if plan.calibration is None:
        where = "here" if plan.hardware.is_here else "there"
        return f"not calibrated: `mechstudy validate` run {where} makes short pilots, and the plan then goes by them"
    return f"calibrated by pilots of {plan.calibration.finished} (validate.json); 90% interval"


def _at_once(plan: Plan) -> str:
    if plan.width == 1:
        return "one at a time (compute.max_parallel)"
    many = f"{plan.width} at once" if plan.width else f"up to {plan.table.most} at once, each a job of its own"
    if plan.caps:
        many += ", " + ", ".join(f"{n} of {phase}" for phase, n in plan.caps.items()) + " (compute.slurm.concurrent)"
    return f"{duration(plan.table.seconds)} with {many}"


def _disk(plan: Plan) -> str:
    disk = plan.disk
    both = human(disk.needed_keeping), human(disk.needed_discarding)
    kept = f"{both[0]} with storage.retain.capture: keep, {both[1]} with discard"
    if disk.needed_keeping == disk.needed_discarding:
        kept = "all layers are captured in one pass, so keeping or discarding them makes no difference to that"
    told = f"{human(disk.needed)} to write at the fullest moment ({kept}); "
    if disk.quota_left is not None:
        told += f"{human(disk.quota_left)} left of storage.quota; "
    if not plan.hardware.is_here:
        return f"{told}the disk there is not checked here"
    return f"{told}{human(disk.free)} free{_where(plan.folder)}"


def _where(folder: Path) -> str:
    """On which disk that is, where one may wonder: the run's folder, and perhaps others above it, are not there yet."""
    looked, folder = nearest_folder(folder), folder.absolute()
    plain = looked in (folder, folder.parent) or looked.is_relative_to(Path.cwd())
    return "" if plain else f" at {looked}, as {folder.parent} is not there yet"


def _alike(rows: Iterable[PlanRow]) -> list[tuple[PlanRow, list[str]]]:
    """Neighbouring rows that look the same but for the unit's name, as one row and its units."""
    found: list[tuple[PlanRow, list[str]]] = []
    for row in rows:
        if found and row.state != "done" and _shown(found[-1][0]) == _shown(row):
            found[-1][1].append(row.unit)
        else:
            found.append((row, [row.unit]))
    return found


def _shown(row: PlanRow) -> PlanRow:
    """The row without what the table does not show of it."""
    seconds = None if row.seconds is None else round(row.seconds, 1)
    memory = replace(row.memory, peak=round(row.memory.peak, -7), float32=0, bfloat16=0)
    return replace(row, unit="", seconds=seconds, memory=memory)


def _together(phase: str, units: Sequence[str]) -> str:
    """``train[0,7,11]`` of train[0], train[7], train[11]; ``train[0-11]`` where none is left out."""
    if len(units) == 1:
        return units[0]
    keys = [unit[len(phase) + 1 : -1] for unit in units]
    if not all(key.isdecimal() for key in keys):
        return "\n".join(units)
    first, last = int(keys[0]), int(keys[-1])
    span = f"{first}-{last}" if last - first + 1 == len(keys) and len(keys) > 2 else ",".join(keys)
    return f"{phase}[{span}]"


def _wrapped(names: str) -> str:
    """Long names on several lines: the bracket's content below its phase, broken at commas."""
    lines: list[str] = []
    for name in names.split("\n"):
        head, _, rest = name.partition("[")
        if len(name) <= _UNIT_WIDTH or not rest:
            lines.append(name)
            continue
        lines.append(f"{head}[")
        words = wrap(rest.replace(",", ", "), _UNIT_WIDTH - 1, break_long_words=False)
        lines += [f" {line.replace(', ', ',')}" for line in words]
    return "\n".join(lines)


def _tflop(flops: float) -> str:
    tera = flops / 1e12
    return "-" if not flops else f"{tera:,.0f}" if tera >= 100 else f"{tera:.3g}"


def _parallel(total: Total) -> str:
    return _time(total.parallel_seconds) if total.to_run and total.seconds else "-"


def _time(seconds: float | None, *, measured: bool = False) -> str:
    if seconds is None:
        return "-"
    return duration(seconds) if measured else f"~{duration(seconds)}"
