"""`run`, `report` and `status`: progress goes to standard error, findings and paths to standard output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mechstudy import api, monitoring, planning, runner
from mechstudy.api.reader_edits import edits_of
from mechstudy.cli import options
from mechstudy.cli.options import overrides, say
from mechstudy.cli.show import print_json, report_pages, show_status
from mechstudy.cli.slurm import as_submitted
from mechstudy.core.errors import MechstudyError
from mechstudy.core.notices import counted
from mechstudy.core.progress import Progress

Records = tuple[bool, bool]  # whether --profile and --memory-snapshot were given


def run(
    study: options.StudyFile,
    sets: options.Sets = None,
    out: options.Out = None,
    device: options.Device = None,
    threads: options.Threads = None,
    world_size: options.WorldSize = None,
    profile: options.Profile = False,
    memory_snapshot: options.MemorySnapshot = False,
) -> None:
    """Run the study, or resume it: only what is missing runs.

    Ctrl-C (or kill -9, or a power cut) loses nothing that is finished; the same command resumes.
    Exit status: 0 done, 2 user error, 1 crash (its traceback is in <run>/log.txt), 130 stopped.

    [dim]mechstudy run study.yaml --threads 8[/]
    """

    def run_all() -> int:
        opened = planning.open_study(study, overrides(sets, device, threads, world_size), out=out, fetch=True, say=say)
        result = _execute(opened, records=(profile, memory_snapshot))
        _print_findings(opened, result)
        return result.exit_code

    raise typer.Exit(runner.led(run_all))


def status(
    study: options.StudyFile, sets: options.Sets = None, out: options.Out = None, as_json: options.Json = False
) -> None:
    """Show every unit's state, from the run's files and Slurm's queue, also while the study runs.

    Without --set, a submitted study is shown with the overrides of its submission.
    """
    opened = as_submitted(study, overrides(sets), out)
    states = runner.read_status(runner.run_of(opened))
    if as_json:
        facts = {"process": states.holder, "counts": states.counts(), "notes": states.notes}
        print_json({"run": str(opened.folder), **facts, "units": [asdict(unit) for unit in states.units]})
    else:
        show_status(states, opened.folder)


def report(
    study: options.StudyFile,
    sets: options.Sets = None,
    out: options.Out = None,
    edits: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Pins, groups and labels that a graph's page saved; repeatable."),
    ] = None,
) -> None:
    """Rebuild the report from the finished units, and print its path. Runs nothing else.

    With --edits, the graphs' pages of this report and of later ones open with these edits.
    """
    opened = planning.open_study(study, overrides(sets), out=out, say=say)
    reports = [unit.name for unit in opened.units if unit.phase.concludes]
    if not any(node.artifact is not None for node in opened.evaluate().nodes.values()):
        raise nothing_has_run(opened.folder, study)
    if edits:
        run = api.open_run(opened.folder)
        kept = dict(edits_of(run, file) for file in edits)
        runner.run_of(opened).folder.keep_edits(kept)
        for name, one in kept.items():
            parts = (("pin", "pinnedIds"), ("group", "supernodes"), ("label", "clerps"))
            say(f"edits of {name}: {', '.join(counted(len(one[field]), noun) for noun, field in parts)}")
    result = _execute(opened, reports, force=reports)
    if result.exit_code == 0:
        print(opened.folder / "report" / "index.html")
    raise typer.Exit(result.exit_code)


def run_units(
    opened: planning.OpenedStudy,
    targets: Sequence[str],
    *,
    records: Records = (False, False),
    resume: Mapping[str, Path] | None = None,
) -> int:
    """Runs some units with the units they need, prints where their artifacts are, and returns the exit status."""
    result = _execute(opened, targets, records=records, resume=resume or {})
    for name in targets:
        unit = result.unit(name)
        where = opened.folder / "artifacts" / unit.artifact.name if unit.artifact is not None else unit.reason or ""
        print(f"{name}: {unit.status}{': ' if where else ''}{where}")
    return result.exit_code


def progress_of(opened: planning.OpenedStudy) -> Progress:
    """Progress that also goes to the run's log."""
    return Progress(log_file=opened.folder / runner.LOG)


def nothing_has_run(folder: Path, study: Path) -> MechstudyError:
    """The error for a run that does not exist yet."""
    return MechstudyError("nothing of this study has run yet", where=str(folder), fix=f"mechstudy run {study}")


def _execute(
    opened: planning.OpenedStudy,
    targets: Sequence[str] | None = None,
    *,
    records: Records = (False, False),
    **changes: Any,
) -> runner.RunResult:
    """Runs units and prints each error in full; tracebacks only with MECHSTUDY_DEBUG."""
    options.units_run()
    recorders = zip(("trace_folder", "snapshot_folder"), records, strict=True)
    changes |= {name: opened.folder / monitoring.PROFILE for name, wanted in recorders if wanted}
    result = runner.execute(opened, targets, progress=progress_of(opened), **changes)
    for failure in result.failures:
        text = str(failure.error) if failure.error is not None else f"{failure.crash} (traceback in log.txt)"
        say(f"\nerror: {failure.name}: {text}")
        if os.environ.get("MECHSTUDY_DEBUG"):
            say(failure.trace)
    return result


def _print_findings(opened: planning.OpenedStudy, result: runner.RunResult) -> None:
    findings = runner.findings_of(runner.run_of(opened).folder)
    if findings:
        print()
    for line in findings:
        print(f"- {line}")
    for unit in result.units:
        if unit.status != "done":
            print(f"- {unit.name}: {unit.status}{': ' + unit.reason if unit.reason else ''}")
    print(f"\nsummary: {opened.folder / 'summary.json'}")
    if (pages := report_pages(opened.folder)) is not None:
        print(pages)
