"""What commands that run something print: progress on standard error, findings and paths on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.monitoring.instrumentation import PROFILE
from mechstudy.runner.results import RunResult
from mechstudy.runner.study_run import OpenedStudy, execute, log_file, open_study

Records = tuple[bool, bool]  # of --profile, --memory-snapshot


def say(message: str) -> None:
    """A line on standard error."""
    print(message, file=sys.stderr, flush=True)


def run_study(file: Path, overrides: Sequence[str], *, out: Path | None, records: Records = (False, False)) -> int:
    """All units; then the findings and where the report is. Returns the exit status.

    In a process that torchrun started, as one of several ranks.
    """
    from mechstudy.runner.processes.torchrun import led

    return led(lambda: _run_study(file, overrides, out, records))


def _run_study(file: Path, overrides: Sequence[str], out: Path | None, records: Records) -> int:
    opened = open_study(file, overrides, out=out, fetch=True, say=say)
    result = execute(opened, progress=_progress(opened), **_recorded(opened, records))
    print_failures(result)
    print_findings(opened, result)
    return result.exit_code


def run_units(
    opened: OpenedStudy,
    targets: Sequence[str],
    *,
    records: Records = (False, False),
    resume: dict[str, Path] | None = None,
) -> int:
    """Some units and what they need; then where their artifacts are. Returns the exit status."""
    result = execute(opened, targets, progress=_progress(opened), resume=resume or {}, **_recorded(opened, records))
    print_failures(result)
    for name in targets:
        unit = result.unit(name)
        where = opened.folder / "artifacts" / unit.artifact.name if unit.artifact is not None else unit.reason or ""
        print(f"{name}: {unit.status}{': ' if where else ''}{where}")
    return result.exit_code


def remake_report(file: Path, overrides: Sequence[str], out: Path | None) -> int:
    """The report from what is there. Returns the exit status."""
    opened = open_study(file, overrides, out=out, say=say)
    reports = [unit.name for unit in opened.units if unit.phase == "report"]
    if not any(node.artifact is not None for node in opened.run().evaluate().nodes.values()):
        raise MechstudyError("nothing of this study has run yet", where=str(opened.folder), fix=f"mechstudy run {file}")
    result = execute(opened, reports, force=reports, progress=_progress(opened))
    print_failures(result)
    if result.exit_code == 0:
        print(opened.folder / "report" / "index.html")
    return result.exit_code


def verify_study(study: Path, overrides: Sequence[str], out: Path | None) -> int:
    """Every checksum. Returns 2 when something was found."""
    from mechstudy.archive.verify import verify_run
    from mechstudy.study.study import load_study

    folder = study if study.is_dir() else out or Path("runs") / load_study(study, overrides)[0].name
    found = verify_run(folder)
    for problem in found.problems:
        print(f"{problem.artifact}/{problem.file}: {_WHAT[problem.what]}")
    for path in found.moved.values():
        print(f"moved aside: {path}")
    if found.moved:
        print(f"{len(found.moved)} of {found.n_artifacts} artifacts are damaged; the next run makes them anew")
        return 2
    print(f"{found.n_artifacts} artifacts, every checksum is right")
    return 0


_WHAT = {
    "missing": "the file is missing",
    "size": "the file has another size",
    "checksum": "the file's bytes have changed",
    "manifest": "the manifest is damaged",
}


def validate_study(file: Path, overrides: Sequence[str], out: Path | None, steps: int) -> int:
    """The three tests. Returns 2 on a no-go."""
    from mechstudy.runner.validate import validate

    opened = open_study(file, overrides, out=out, fetch=True, say=say)
    found = validate(opened, steps=steps, progress=_progress(opened))
    for test in found["tests"]:
        print(f"{test['name']:<12} {'go' if test['go'] else 'NO-GO':<6} {test['text']}")
        if not test["go"]:
            print(f"{'':<19} fix: {test['fix']}")
    print(f"{'go' if found['go'] else 'NO-GO'}: {opened.folder / 'validate.json'}")
    return 0 if found["go"] else 2


def print_failures(result: RunResult) -> None:
    """Each error in full, on standard error; tracebacks only with MECHSTUDY_DEBUG."""
    for failure in result.failures:
        text = str(failure.error) if failure.error is not None else f"{failure.crash} (traceback in log.txt)"
        print(f"\nerror: {failure.name}: {text}", file=sys.stderr)
        if os.environ.get("MECHSTUDY_DEBUG"):
            print(failure.trace, file=sys.stderr)


def print_findings(opened: OpenedStudy, result: RunResult) -> None:
    """What was found, in a few lines, and where to read on."""
    from mechstudy.cli.show import where_to_read
    from mechstudy.runner.summary import findings_of

    found = findings_of(opened, result)
    if found:
        print()
    for line in found:
        print(f"- {line}")
    unfinished = [unit for unit in result.units if unit.status != "done"]
    for unit in unfinished:
        print(f"- {unit.name}: {unit.status}{': ' + unit.reason if unit.reason else ''}")
    print(f"\nsummary: {opened.folder / 'summary.json'}")
    if (pages := where_to_read(opened.folder)) is not None:
        print(pages)


def _progress(opened: OpenedStudy) -> Progress:
    return Progress(log_file=log_file(opened.folder))


def _recorded(opened: OpenedStudy, records: Records) -> dict[str, Any]:
    """Fields of `Options` for what was asked to be recorded: the profiler's trace, snapshots of memory."""
    folder = opened.folder / PROFILE
    return {name: folder for name, asked in zip(("profile", "snapshots"), records, strict=True) if asked}
