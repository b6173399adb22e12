"""`plan`: a study's needs as tables, 100 columns wide by default; in a narrower terminal in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mechstudy import planning
from mechstudy.cli.options import Device, HardwareName, Json, Out, Sets, StudyFile, Threads, overrides, say
from mechstudy.cli.show import COLOURS, console, phase_table, print_fitting, print_json, table, time_text
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.machine.devices import resolve_device
from mechstudy.models.known import known_models
from mechstudy.runner import slurm
from mechstudy.study.slurm_config import SlurmConfig

WIDTH = 100
_UNIT_WIDTH = 28
_MODELS_HELP = "List the models that can be planned before they are fetched, and exit."


def _list_models(wanted: bool) -> None:
    if wanted:
        print("\n".join(f"hf:{name}" for name in known_models()))
        raise typer.Exit


Models = Annotated[bool, typer.Option("--models", callback=_list_models, is_eager=True, help=_MODELS_HELP)]


def plan(
    study: StudyFile,
    sets: Sets = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    hardware: HardwareName = None,
    as_json: Json = False,
    models: Models = False,
) -> None:
    """Show what the study will need: FLOPs, time, memory, disk, GPU-hours, per unit, per phase and in total.

    Loads no weights; well-known models need not even be fetched. `mechstudy validate` calibrates the numbers on this
    machine. Exits with 2 when something cannot fit, with the change that would make it fit.

    [dim]mechstudy plan study.yaml --hardware a100-80gb --set dictionaries.layers=0-29[/]
    """
    opened = planning.open_study(study, overrides(sets, device, threads), out=out, say=say)
    jobs = _slurm(opened)
    machine = planning.asked_hardware(opened.study.compute, hardware)
    if machine is None and jobs is None:  # it would run here; a cluster's nodes may have what this machine lacks
        resolve_device(opened.options.device)
    made = planning.make_plan(opened.evaluate(), opened.folder, opened.options, hardware=machine, slurm=jobs)
    made.notes.extend(opened.notes)
    if opened.model is None:
        made.notes.append("the model's weights are not here yet; `mechstudy run` fetches them")
    if as_json:
        print_json(made.as_json())
    else:
        show_plan(made)
    errors = planning.refusals(made, opened, jobs, disk_here=made.hardware.is_here)
    for error in errors[:-1]:
        say(f"error: {error}\n")
    if errors:
        raise errors[-1]


def _slurm(opened: planning.OpenedStudy) -> SlurmConfig | None:
    """What jobs ask for, with the profile's values; None for a study without Slurm settings."""
    compute = opened.study.compute
    if compute.profile is None and compute.slurm == SlurmConfig():
        return None
    return slurm.resolved(compute, opened.lines)[0]


def show_plan(plan: planning.Plan) -> None:
    """Prints the units, the phases with their total, and a summary of hardware, time, disk, memory and cost."""
    out = console(WIDTH)
    out.print(_units(plan.rows))
    _print_phases(plan, out)
    for label, text in _summary(plan):
        line = Table.grid(padding=(0, 1))
        line.add_column(width=9, no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(Text(f"{label}:" if label else ""), Text(text))
        out.print(line)


def _units(rows: Sequence[planning.PlanRow]) -> Table:
    units = table("unit", "state", "~what", ">disk", ">memory", ">time")
    for row, names in _alike(rows):
        shapes = ", ".join(f"{name} {shape}" for name, shape in row.shapes.items())
        what = row.reason or "; ".join(text for text in (row.note, shapes) if text)
        if len(names) > 1:
            what = f"{len(names)} units, each: {what}"
        disk = human(row.bytes_on_disk) if row.bytes_on_disk else "-"
        units.add_row(
            Text(_wrapped(_together(row.phase, names))),
            Text(row.state, style=COLOURS.get(row.state, "")),
            Text(what),
            disk if row.exact or disk == "-" else f"~{disk}",
            human(row.memory.peak) if row.memory.peak else "-",
            time_text(row.seconds, measured=row.state == "done"),
        )
    return units


def _print_phases(plan: planning.Plan, out: Console) -> None:
    """Work and time, then memory and disk; on a CPU in one table where it fits, since there are no GPU-hours."""
    totals = {**plan.phases(), "total": plan.total}
    columns = {
        "units": [str(t.units) for t in totals.values()],
        "to do": [str(t.to_run) for t in totals.values()],
        "TFLOP": [_tflop(t.flops) for t in totals.values()],
        "time": [time_text(t.seconds or None, measured=False) for t in totals.values()],
        "parallel": [_parallel(t) for t in totals.values()],
    }
    on_gpu = {
        "GPUs": [str(t.at_once or "-") for t in totals.values()],
        "GPU-hours": [f"{t.gpu_hours:.3f}" for t in totals.values()],
        "service units": [f"{t.service_units:.3f}" for t in totals.values()],
    }
    sizes = [
        [human(t.memory.float32), human(t.memory.bfloat16), human(t.bytes_on_disk), human(t.bytes_kept)]
        for t in totals.values()
    ]

    def of(columns: dict[str, list[str]]) -> Table:
        return phase_table([*totals], [*columns], [*zip(*columns.values(), strict=True)])

    space = phase_table([*totals], ["memory in fp32", "in bf16", "disk with keep", "with discard"], sizes)
    if plan.hardware.device == "cuda":
        print_fitting(out, of(columns | on_gpu), [of(columns), of(on_gpu)])
        out.print(space)
    else:
        short = dict(zip(("fp32", "bf16", "keep", "discard"), map(list, zip(*sizes, strict=True)), strict=True))
        print_fitting(out, of(columns | short), [of(columns), space])


def _summary(plan: planning.Plan) -> list[tuple[str, str]]:
    hardware, total = plan.hardware, plan.total
    low, high = plan.interval
    rates = hardware.source if hardware.is_here else "profile, see docs/how-to/budget.md for its sources"
    lines = [
        ("hardware", f"{hardware.name}: {rates}"),
        ("time", f"{duration(plan.seconds)} one after another [{duration(low)}, {duration(high)}]; {_at_once(plan)}"),
        ("", _calibrated(plan)),
        ("disk", _disk(plan)),
    ]
    device = hardware.device == "cuda"
    limit = f"of {human(hardware.memory_bytes)}" + (" on the GPU" if device else "")
    if hardware.is_here and not device:
        limit = f"{human(plan.memory_available)} available of {human(plan.memory_total)}"
    lines.append(("memory", f"{human(plan.memory_needed)} at the peak, {limit}; fp32 and bf16 include the model"))
    if device:
        currency = hardware.currency or "in the money of price_per_su"
        price = "" if total.price is None else f", {total.price:,.2f} {currency}"
        units = f"{total.service_units:.3g} service units ({hardware.su_per_gpu_hour:g} per GPU-hour)"
        lines.append(("cost", f"{total.gpu_hours:.3g} GPU-hours, {units}{price}"))
    exact = sum(row.exact for row in plan.rows)
    lines.append(("exact", f"sizes without ~ ({exact} of {len(plan.rows)} units), except JSON beside the arrays"))
    lines.append(("folder", str(plan.folder)))
    if not any(row.to_run for row in plan.rows):
        lines.append(
            ("note", "nothing is left to run: each unit's measured cost is shown here and in `mechstudy cost`")
        )
    if not device and hardware.is_here and plan.memory_needed > plan.memory_available:
        lines.append(("note", "there may not be enough memory; `mechstudy validate` measures it"))
    return [*lines, *(("note", note) for note in plan.notes)]


def _calibrated(plan: planning.Plan) -> str:
    if plan.uncalibrated is not None:
        return f"not calibrated: {plan.uncalibrated}"
    if plan.calibration is None:
        where = "here" if plan.hardware.is_here else "on that machine"
        return f"not calibrated: `mechstudy validate` run {where} measures short pilots for the plan to use"
    return f"calibrated by pilots of {plan.calibration.finished} (validate.json); 90% interval"


def _at_once(plan: planning.Plan) -> str:
    if plan.width == 1:
        return "one at a time (compute.max_parallel)"
    many = f"{plan.width} at once" if plan.width else f"up to {plan.table.most} at once, each its own job"
    if plan.caps:
        many += ", " + ", ".join(f"{n} of {phase}" for phase, n in plan.caps.items()) + " (compute.slurm.concurrent)"
    return f"{duration(plan.table.seconds)} with {many}"


def _disk(plan: planning.Plan) -> str:
    disk = plan.disk
    keeping, discarding = human(disk.needed_keeping), human(disk.needed_discarding)
    retention = f"{keeping} with storage.retain.capture: keep, {discarding} with discard"
    if disk.needed_keeping == disk.needed_discarding:
        retention = "all layers are captured in one pass, so keeping or discarding them makes no difference"
    text = f"{human(disk.needed)} to write at the peak ({retention}); "
    if disk.quota_left is not None:
        text += f"{human(disk.quota_left)} left of storage.quota; "
    if not plan.hardware.is_here:
        return f"{text}the disk there is not checked here"
    return f"{text}{human(disk.free)} free{_where(plan.folder)}"


def _where(folder: Path) -> str:
    """The folder whose disk was measured, if it is not obvious because the run's folder does not exist yet."""
    measured, folder = planning.nearest_folder(folder), folder.absolute()
    obvious = measured in (folder, folder.parent) or measured.is_relative_to(Path.cwd())
    return "" if obvious else f" at {measured}, as {folder.parent} does not exist yet"


def _alike(rows: Iterable[planning.PlanRow]) -> Iterator[tuple[planning.PlanRow, list[str]]]:
    """Neighbouring rows that are not done and differ only in the unit's name, as one row with its units."""
    for _, same in groupby(rows, lambda row: row if row.state == "done" else _shown(row)):
        alike = list(same)
        yield alike[0], [row.unit for row in alike]


def _shown(row: planning.PlanRow) -> planning.PlanRow:
    """The row without what the table leaves out."""
    seconds = None if row.seconds is None else round(row.seconds, 1)
    memory = replace(row.memory, peak=round(row.memory.peak, -7), float32=0, bfloat16=0)
    return replace(row, unit="", seconds=seconds, memory=memory)


def _together(phase: str, units: Sequence[str]) -> str:
    """``train[0,7,11]`` for train[0], train[7], train[11]; ``train[0-11]`` for all layers between two."""
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


def _parallel(total: planning.Total) -> str:
    return time_text(total.parallel_seconds, measured=False) if total.to_run and total.seconds else "-"
