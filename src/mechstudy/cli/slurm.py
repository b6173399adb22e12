"""A study as jobs of a Slurm cluster: submit, resume, why, logs, cancel. Each returns at once; nothing stays behind."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechstudy.cli.options import STUDY_PANEL, Json, Out, Sets, StudyFile, guarded, overrides

if TYPE_CHECKING:
    from mechstudy.runner.slurm.submit import Asked, Result
    from mechstudy.runner.slurm.why import Why
    from mechstudy.runner.study_run import OpenedStudy

SLURM = "On a Slurm cluster"

ProfileName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A profile of ~/.config/mechstudy/profiles; overrides compute.profile.",
        rich_help_panel=STUDY_PANEL,
    ),
]
UnitName = Annotated[str, typer.Argument(metavar="UNIT", help="A unit as `mechstudy status` names it: 'train\\[12]'.")]


@guarded
def submit(
    study: StudyFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the scripts and show what would be submitted; submit nothing.")
    ] = False,
    profile_name: ProfileName = None,
    sets: Sets = None,
    out: Out = None,
) -> None:
    """Submit the whole study at once: an array per phase and behaviour, each waiting for those it needs.

    What to ask the cluster for stands in the study (compute.slurm) or in a profile. Jobs save themselves before
    their time limit and go back into the queue. Edit the study afterwards as you like: jobs run what was submitted.

    [dim]mechstudy submit study.yaml --profile-name snellius --dry-run[/]
    """
    from mechstudy.runner.slurm import submit as submitting

    asked = _asked(study, overrides(sets), out, profile_name, "submit", fetch=not dry_run)
    if dry_run:
        from mechstudy.cli.slurm_table import show_dry_run

        show_dry_run(asked, submitting.show(asked))
    else:
        _show_result(asked, submitting.submit(asked, _say))


@guarded
def resume(study: StudyFile, profile_name: ProfileName = None, sets: Sets = None, out: Out = None) -> None:
    """Submit what is missing and in no queue: after a failure, a cancel, a full quota, or a lost job.

    Nothing is done twice. Jobs that still wait are made to wait for the new ones too. Overrides and profile are
    those of the last submit unless given again.

    [dim]mechstudy resume study.yaml[/]
    """
    from mechstudy.runner.slurm import submit as submitting
    from mechstudy.runner.slurm.record import read_record

    given, profile = overrides(sets), profile_name
    latest = read_record(_run_folder(study, given, out)).latest
    if latest is not None:
        given, profile = given or latest.overrides, profile or latest.profile
    asked = _asked(study, given, out, profile, "resume", fetch=True)
    _show_result(asked, submitting.submit(asked, _say))


@guarded
def why(study: StudyFile, unit: UnitName, sets: Sets = None, out: Out = None, as_json: Json = False) -> None:
    """Why a unit waits, or why it failed; the end of its log; and what to do next.

    [dim]mechstudy why study.yaml 'train\\[12]'[/]
    """
    from mechstudy.cli.show import print_json
    from mechstudy.runner.slurm.why import why as explain

    opened = as_submitted(study, overrides(sets), out)
    found = explain(opened, unit)
    if as_json:
        log = None if found.log is None else str(found.log)
        facts = {"unit": found.unit.name, "status": found.unit.status, **found.facts}
        print_json({**facts, "log": log, "lines": found.lines, "next": found.next})
    else:
        _show_why(found)


@guarded
def logs(
    study: StudyFile,
    unit: UnitName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until the unit ends.")] = False,
    sets: Sets = None,
    out: Out = None,
) -> None:
    """What the jobs of a unit have printed, oldest first.

    [dim]mechstudy logs study.yaml 'train\\[12]' -f[/]
    """
    from mechstudy.core.errors import MechstudyError
    from mechstudy.runner.slurm import logs as reading
    from mechstudy.runner.slurm.job_status import jobs_now

    run = _run_folder(study, overrides(sets), out)

    def over() -> bool:
        return unit not in jobs_now(run, ask_accounting=False).alive

    files = reading.logs_of(run, unit)
    if not files and (not follow or over()):
        raise MechstudyError(
            f"there is no log of {unit}", where=str(run), fix="`mechstudy status` names the units and their jobs"
        )
    position = reading.print_logs(files)
    if follow:
        reading.follow(lambda: reading.logs_of(run, unit), position, over)


@guarded
def cancel(
    study: StudyFile,
    units: Annotated[list[str] | None, typer.Argument(metavar="[UNIT]...", help="Units; all by default.")] = None,
    sets: Sets = None,
    out: Out = None,
) -> None:
    """Take a study's jobs, or those of some units, out of the queue. What they have saved is kept.

    [dim]mechstudy cancel study.yaml 'train\\[12]' 'train\\[13]'[/]
    """
    from mechstudy.runner.slurm.cancel import cancel as take_out

    found = take_out(_run_folder(study, overrides(sets), out), units or ())
    print(f"cancelled: {', '.join(found)}" if found else "nothing of this study is in the queue")


@guarded
def unit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    name: Annotated[str, typer.Argument(metavar="UNIT")],
    submission: Annotated[int, typer.Option(metavar="N", help="Which of the run's submissions.")],
    ended: Annotated[
        int | None, typer.Option(metavar="STATUS", help="The worker has ended so: decide what the job does.")
    ] = None,
) -> None:
    """What a job's script calls: runs one unit of what was submitted, and decides what follows.

    Exit status: 0 done or stopped by a gate, 2 a mistake you can mend, 1 a crash, 75 saved and to be run again.
    """
    if ended is not None:
        from mechstudy.runner.slurm.requeue import after_worker

        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        raise typer.Exit(after_worker(run, name, submission, ended))
    from mechstudy.runner.slurm.frozen import thaw
    from mechstudy.runner.slurm.worker import run_unit

    raise typer.Exit(run_unit(thaw(run, submission), name))


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the app."""
    for command in (submit, resume, why, logs, cancel):
        app.command(rich_help_panel=SLURM)(command)
    app.command(hidden=True)(unit)


def as_submitted(study: Path, given: list[str], out: Path | None) -> OpenedStudy:
    """A study opened with the overrides given, or else with those that it was last submitted with."""
    from mechstudy.runner.slurm.record import has_record, overrides_of

    opened = _opened(study, given, out)
    if given or not has_record(opened.folder) or not (overrides := overrides_of(opened.folder)):
        return opened
    return _opened(study, overrides, out)


# --------------------------------------------------------------------------------------------------- opening


def _opened(file: Path, given: list[str], out: Path | None, fetch: bool = False) -> OpenedStudy:
    from mechstudy.runner.study_run import open_study

    return open_study(file, given, out=out, fetch=fetch, say=_say)


def _asked(
    file: Path, given: list[str], out: Path | None, profile: str | None, command: str, *, fetch: bool
) -> Asked:  # fmt: skip
    from mechstudy.runner.slurm.profiles import resolved
    from mechstudy.runner.slurm.submit import Asked

    opened = _opened(file, given, out, fetch)
    slurm, where = resolved(opened.study.compute, opened.lines, profile)
    return Asked(opened, slurm, where, profile, command)


def _run_folder(study: Path, given: list[str], out: Path | None) -> Path:
    """Of a study file, or the folder itself."""
    from mechstudy.study.study import load_study

    if study.is_dir():
        return study
    return out or Path("runs") / load_study(study, given)[0].name


# --------------------------------------------------------------------------------------------------- showing


def _show_result(asked: Asked, result: Result) -> None:
    done = f"{result.done} units are done" + (f", {result.stopped} stopped by a gate" if result.stopped else "")
    if result.queued:
        print(f"{len(result.queued)} units are in the queue already")
    if result.repointed:
        print(f"made to wait for the new jobs too: {', '.join(result.repointed)}")
    if not result.jobs:
        print(f"nothing to submit: {done}")
        return
    print(f"{result.n_units} units in {len(result.jobs)} jobs are submitted; {done}")
    print(f"scripts: {(result.run / result.jobs[0].script).parent}")
    print(f"next:    {asked.opened.command('status')}")


def _show_why(found: Why) -> None:
    rows = [*found.facts.items()]
    if found.log is not None:
        rows.append(("log", str(found.log)))
    print(f"{found.unit.name}: {found.unit.status}")
    width = max(len(label) + 1 for label, _ in [*rows, ("next", "")])
    for label, text in rows:
        indented = text.replace("\n", "\n" + " " * (width + 3))
        print(f"  {label + ':':<{width}} {indented}")
    for line in found.lines:
        print(f"    | {line}")
    print(f"  {'next:':<{width}} {found.next}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
