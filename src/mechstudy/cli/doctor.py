"""`doctor` and `usage`: how the machine is, what held a run up, what a run used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechstudy.cli.options import Json, Out, Sets, guarded

if TYPE_CHECKING:
    from mechstudy.doctor.check import Check
    from mechstudy.doctor.run import Diagnosis

OptionalStudy = Annotated[
    Path | None,
    typer.Argument(
        metavar="[STUDY]", help="A study file or a run's folder: what held that run up. Without: this machine."
    ),
]
STYLES = {"ok": "green", "warn": "yellow", "bad": "red"}


@guarded
def doctor(
    study: OptionalStudy = None,
    sets: Sets = None,
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="Without torch and without measuring disks.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine; or, given a study, name what held its run up and the field to change.

    The machine: Python and torch, driver, precisions, cores and quotas, memory, disks, locks, Slurm, the hub. Exits
    with 2 when a study would fail here. A run: from the usage that was recorded beside its artifacts.

    [dim]mechstudy doctor[/]   [dim]mechstudy doctor study.yaml[/]
    """
    raise typer.Exit(_machine(out, quick, as_json) if study is None else _study(study, sets or [], out, as_json))


@guarded
def usage(study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file, or a run's folder.")],
          sets: Sets = None, out: Out = None, as_json: Json = False) -> None:  # fmt: skip
    """What each phase used of CPU, memory, disk and GPU, against what is to be expected of it.

    Also while it runs. The report's page "Usage" shows it over time.

    [dim]mechstudy usage study.yaml[/]
    """
    from mechstudy.cli.show import print_json

    found = _diagnosis(study, sets or [], out)
    if as_json:
        print_json(_as_json(found))
    else:
        _show_usage(found)


def add_to(app: typer.Typer, looking: str) -> None:
    """Adds both commands to the app."""
    app.command(rich_help_panel=looking)(usage)
    app.command(rich_help_panel=looking)(doctor)


# ------------------------------------------------------------------------------------------------ a machine


def _machine(out: Path | None, quick: bool, as_json: bool) -> int:
    from dataclasses import asdict
    from functools import partial

    from mechstudy.cli.show import print_json
    from mechstudy.doctor import disks, machine, outside, torch_checks
    from mechstudy.doctor.check import looked
    from mechstudy.machine.cache import cache_folder

    checks: list[Any] = [machine.python, machine.cores, machine.memory, machine.huge_pages, machine.gpu_driver]
    if not quick:
        for name, path in (("run folder", out or Path("runs")), ("cache", cache_folder())):
            checks.append(_named(partial(disks.folder, name, path), name))
    checks += [outside.slurm, outside.hub]
    if not quick:
        checks += [torch_checks.build, torch_checks.precision, torch_checks.threading]
    found: list[Check] = []
    for check in looked(checks):
        found.append(check)
        if not as_json:
            _show(check)
    if as_json:
        print_json([asdict(check) for check in found])
    bad, warned = (sum(check.status == status for check in found) for status in ("bad", "warn"))
    if not as_json:
        print(f"\n{len(found)} checks: {bad} bad, {warned} to look at")
    return 2 if bad else 0


def _named(check: Any, name: str) -> Any:
    check.__name__ = name
    return check


def _show(check: Check) -> None:
    from rich.text import Text

    from mechstudy.cli.show import console

    out = console()
    out.print(
        Text.assemble((f"{check.status:5}", STYLES[check.status]), (f"{check.name}: ", "bold"), check.found),
        soft_wrap=True,
    )
    if check.fix:
        out.print(Text(f"     {check.fix}", style="dim" if check.status == "ok" else ""), soft_wrap=True)


# ---------------------------------------------------------------------------------------------------- a run


def _diagnosis(study: Path, sets: list[str], out: Path | None) -> Diagnosis:
    from mechstudy.core.errors import MechstudyError
    from mechstudy.doctor.run import diagnose
    from mechstudy.study.run_folder import STUDY
    from mechstudy.study.study import load_study, study_dict

    file = study / STUDY if study.is_dir() else study
    read, _ = load_study(file, sets)
    run = study if study.is_dir() else out or Path("runs") / read.name
    if not run.is_dir():
        raise MechstudyError("nothing of this study has run yet", where=str(run), fix=f"mechstudy run {file}")
    return diagnose(run, study_dict(read))


def _study(study: Path, sets: list[str], out: Path | None, as_json: bool) -> int:
    from rich.text import Text

    from mechstudy.cli.show import console, print_json
    from mechstudy.core.progress import duration

    found = _diagnosis(study, sets, out)
    if as_json:
        print_json(_as_json(found))
        return 0
    screen = console()
    for phase in found.phases:
        head = Text.assemble(
            (phase.phase, "bold"), f": {duration(phase.use.seconds)}, {_busy_text(phase)}, {phase.verdict}"
        )
        screen.print(head, soft_wrap=True)
        for cause in phase.found:
            screen.print(Text.assemble("  ", (cause.name, "yellow"), f": {cause.evidence}"), soft_wrap=True)
            screen.print(Text(f"    change {cause.change}"), soft_wrap=True)
    for note in found.notes:
        screen.print(Text(f"note: {note}"), soft_wrap=True)
    if found.phases and not any(phase.found for phase in found.phases):
        screen.print("nothing held this run up")
    return 0


def _show_usage(found: Diagnosis) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from mechstudy.cli.show import console
    from mechstudy.core.progress import duration
    from mechstudy.core.sizes import human

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase")
    for name in ("units", "time", "busy", "expected", "cores", "memory", "read", "written", "GPU memory", "watts"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for phase in found.phases:
        use, wanted = phase.use, phase.evidence.expected
        table.add_row(
            phase.phase, str(phase.evidence.units), duration(use.seconds), f"{use.busy:.0%}",
            f"{wanted.low:.0%}-{wanted.high:.0%}" if wanted is not None else "", f"{use.cores:.2f}", human(use.rss),
            *("-" if value is None else human(value) for value in (use.read, use.write, use.gpu_memory)),
            "-" if use.watts is None else f"{use.watts:.0f}",
            Text(phase.verdict, style="yellow" if phase.verdict == "low" else ""),
        )  # fmt: skip
    screen = console()
    screen.print(table)
    for line in [*found.notes, *(["`mechstudy doctor STUDY` says why a phase is low"] if found.phases else [])]:
        screen.print(Text(line))


def _busy_text(phase: Any) -> str:
    wanted = f", expected {phase.evidence.expected}" if phase.evidence.expected is not None else ""
    return f"{'GPU' if phase.use.on_gpu else 'threads'} busy {phase.use.busy:.0%}{wanted}"


def _as_json(found: Diagnosis) -> dict[str, Any]:
    from dataclasses import asdict

    phases = [
        {
            "phase": phase.phase,
            "units": list(phase.units),
            "verdict": phase.verdict,
            "busy": phase.use.busy,
            "expected": None if (w := phase.evidence.expected) is None else [w.low, w.high],
            "use": asdict(phase.use),
            "bottlenecks": [asdict(cause) for cause in phase.found],
        }
        for phase in found.phases
    ]
    return {"phases": phases, "notes": found.notes}
