"""A study as jobs of a Slurm cluster: `submit`, `resume`, `why`, `logs`, `cancel`. Each returns at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from mechstudy import planning
from mechstudy.cli.options import STUDY_PANEL, Json, Out, Sets, StudyFile, overrides, say
from mechstudy.cli.show import console, print_json, table
from mechstudy.core.errors import MechstudyError
from mechstudy.runner import slurm
from mechstudy.study.slurm_config import SlurmConfig
from mechstudy.study.study import load_study

ProfileName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A profile of ~/.config/mechstudy/profiles; overrides compute.profile.",
        rich_help_panel=STUDY_PANEL,
    ),
]
UnitName = Annotated[str, typer.Argument(metavar="UNIT", help="A unit's name in `mechstudy status`: 'train\\[12]'.")]


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

    Requested resources are in the study (compute.slurm) or in a profile. Jobs save their state before their time
    limit and requeue themselves. Later edits of the study do not change what submitted jobs run.

    [dim]mechstudy submit study.yaml --profile-name snellius --dry-run[/]
    """
    asked = _asked(study, overrides(sets), out, profile_name, "submit", fetch=not dry_run)
    _say_ignored()
    if dry_run:
        show_dry_run(asked, slurm.submission.show(asked))
    else:
        _show_result(asked, slurm.submission.submit(asked, say))


def resume(study: StudyFile, profile_name: ProfileName = None, sets: Sets = None, out: Out = None) -> None:
    """Submit units that are neither done nor queued: after a failure, a cancel, a full quota, or a lost job.

    Nothing runs twice. Jobs that still wait then wait for the new ones too. Overrides and profile default to those
    of the last submission.

    [dim]mechstudy resume study.yaml[/]
    """
    changes, profile = overrides(sets), profile_name
    latest = slurm.read_record(run_folder(study, changes, out)).latest
    if latest is not None:
        changes, profile = changes or latest.overrides, profile or latest.profile
    asked = _asked(study, changes, out, profile, "resume", fetch=True)
    _say_ignored()
    _show_result(asked, slurm.submission.submit(asked, say))


def why(study: StudyFile, unit: UnitName, sets: Sets = None, out: Out = None, as_json: Json = False) -> None:
    r"""Show why a unit waits or failed, the end of its log, and what to do next.

    [dim]mechstudy why study.yaml 'train\[12]'[/]
    """
    opened = as_submitted(study, overrides(sets), out)
    reason = slurm.why(opened, unit)
    if as_json:
        log = None if reason.log is None else str(reason.log)
        facts = {"unit": reason.unit.name, "status": reason.unit.status, **reason.facts}
        print_json({**facts, "log": log, "lines": reason.lines, "next": reason.next})
    else:
        _show_why(reason)


def logs(
    study: StudyFile,
    unit: UnitName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the unit ends.")] = False,
    sets: Sets = None,
    out: Out = None,
) -> None:
    r"""Print the output of a unit's jobs, oldest first.

    [dim]mechstudy logs study.yaml 'train\[12]' -f[/]
    """
    run = run_folder(study, overrides(sets), out)

    def over() -> bool:
        return unit not in slurm.jobs_now(run, ask_accounting=False).alive

    files = slurm.logs_of(run, unit)
    if not files and (not follow or over()):
        raise MechstudyError(
            f"there is no log of {unit}", where=str(run), fix="`mechstudy status` names the units and their jobs"
        )
    position = slurm.print_logs(files)
    if follow:
        slurm.follow(lambda: slurm.logs_of(run, unit), position, over)


def cancel(
    study: StudyFile,
    units: Annotated[list[str] | None, typer.Argument(metavar="[UNIT]...", help="Units. Default: all.")] = None,
    sets: Sets = None,
    out: Out = None,
) -> None:
    r"""Cancel a study's jobs, or those of some units. What they have saved is kept.

    [dim]mechstudy cancel study.yaml 'train\[12]' 'train\[13]'[/]
    """
    cancelled = slurm.cancel(run_folder(study, overrides(sets), out), units or ())
    print(f"cancelled: {', '.join(cancelled)}" if cancelled else "nothing of this study is in the queue")


def unit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    name: Annotated[str, typer.Argument(metavar="UNIT")],
    submission: Annotated[int, typer.Option(metavar="N", help="Number of the run's submission.")],
    ended: Annotated[
        int | None, typer.Option(metavar="STATUS", help="The worker's exit status: decide what the job does.")
    ] = None,
) -> None:
    """Called by a job's script: runs one submitted unit, and decides what follows.

    Exit status: 0 done or stopped by a gate, 2 user error, 1 crash, 75 saved and to be run again.
    """
    if ended is not None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        raise typer.Exit(slurm.after_worker(run, name, submission, ended))
    raise typer.Exit(slurm.run_in_job(slurm.thaw(run, submission), name))


def as_submitted(study: Path, changes: list[str], out: Path | None) -> planning.OpenedStudy:
    """Opens a study with these overrides, or without any with those of its last submission."""
    opened = planning.open_study(study, changes, out=out, say=say)
    if changes or not slurm.has_record(opened.folder):
        return opened
    latest = slurm.read_record(opened.folder).latest
    submitted = latest.overrides if latest is not None else []
    return planning.open_study(study, submitted, out=out, say=say) if submitted else opened


def run_folder(study: Path, changes: list[str], out: Path | None) -> Path:
    """The run's folder of a study file, or the folder itself."""
    if study.is_dir():
        return study
    return out or Path("runs") / load_study(study, changes)[0].name


def _asked(
    file: Path, changes: list[str], out: Path | None, profile: str | None, command: str, *, fetch: bool
) -> slurm.Asked:
    opened = planning.open_study(file, changes, out=out, fetch=fetch, say=say)
    config, where = slurm.resolved(opened.study.compute, opened.lines, profile)
    return slurm.Asked(opened, config, where, profile, command)


def _say_ignored() -> None:
    """Says which variables of this shell would have changed what jobs ask for."""
    if ignored := slurm.ignored_requests():
        say(f"note: not handed on to Slurm, jobs get what compute.slurm says: {', '.join(ignored)}")
    if job := os.environ.get("SLURM_JOB_ID"):
        say(f"note: this shell is in job {job}: nothing of that job is handed on")


def _show_result(asked: slurm.Asked, result: slurm.Result) -> None:
    done = f"{result.done} units are done" + (f", {result.stopped} stopped by a gate" if result.stopped else "")
    if result.queued:
        print(f"{len(result.queued)} units are in the queue already")
    if result.repointed:
        print(f"now also waiting for the new jobs: {', '.join(result.repointed)}")
    if not result.jobs:
        print(f"nothing to submit: {done}")
        return
    print(f"{result.n_units} units in {len(result.jobs)} jobs are submitted; {done}")
    print(f"scripts: {(result.run / result.jobs[0].script).parent}")
    print(f"next:    {asked.opened.command('status')}")


def _show_why(reason: slurm.Why) -> None:
    rows = [*reason.facts.items()]
    if reason.log is not None:
        rows.append(("log", str(reason.log)))
    print(f"{reason.unit.name}: {reason.unit.status}")
    width = max(len(label) + 1 for label, _ in [*rows, ("next", "")])
    for label, text in rows:
        indented = text.replace("\n", "\n" + " " * (width + 3))
        print(f"  {label + ':':<{width}} {indented}")
    for line in reason.lines:
        print(f"    | {line}")
    print(f"  {'next:':<{width}} {reason.next}")


def show_dry_run(asked: slurm.Asked, result: slurm.Result) -> None:
    """Prints the arrays, the commands, the scripts' folder, and the next command."""
    if not result.shown:
        print(f"nothing to submit: {result.done} units are done")
        return
    arrays = table("array", "~units", "~after", "~asks for")
    implied: dict[str, set[str]] = {}  # array -> all arrays before it; only the last of them are shown
    for shown in result.shown:
        before = [key for key in shown.after if not any(key in implied[other] for other in shown.after)]
        implied[shown.group.key] = {*shown.after}.union(*(implied[key] for key in shown.after))
        wait = ("the end of " if shown.group.takes_what_is_there else "") + ", ".join(before)
        n = len(shown.tasks)
        units = f"{n}: {', '.join(shown.tasks)}" if n > 1 else str(n)
        arrays.add_row(Text(shown.group.key), Text(units), Text(wait if before else "-"), Text(_asks(shown.asked)))
    console().print(arrays)
    for shown in result.shown:
        print(shown.command)
    n_units = sum(len(shown.tasks) for shown in result.shown)
    print(f"\n{n_units} units in {len(result.shown)} jobs; nothing was submitted")
    print(f"scripts: {result.shown[0].script.parent}")
    print(f"cost:    {asked.opened.command('plan')}")
    profile = () if asked.profile is None else ("--profile-name", asked.profile)
    print(f"next:    {asked.opened.command('submit', *profile)}")


def _asks(asked: SlurmConfig) -> str:
    """``partition gpu, gpus 1, memory 64G, time 04:00:00``."""
    names = ("partition", "account", "qos", "gpus", "cpus", "memory", "time", "concurrent")
    fields = [f"{name} {getattr(asked, name)}" for name in names if getattr(asked, name) is not None]
    return ", ".join([*fields, *asked.extra]) or "the cluster's defaults"
