"""Runs the units of an opened study, and keeps its run folder up to date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.planning.disk import disk_need, disk_refusal
from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.planning.source_choice import record
from mechstudy.runner.completion import conclude
from mechstudy.runner.results import RunResult
from mechstudy.runner.run import Run
from mechstudy.runner.slurm.job_status import jobs_now


def run_of(opened: OpenedStudy, progress: Progress | None = None, **changes: Any) -> Run:
    """The run of an opened study; ``changes`` are fields of `RunOptions`."""
    return Run(opened.folder, opened.units, opened.options.replace(**changes), progress)


def execute(
    opened: OpenedStudy,
    targets: Sequence[str] | None = None,
    *,
    force: Sequence[str] = (),
    progress: Progress | None = None,
    **changes: Any,
) -> RunResult:
    """Runs a study's units; afterwards its folder holds the newest summary and report.

    Raises:
        MechstudyError: the disk or the quota is too small, or jobs of this study are in the queue.
    """
    run = run_of(opened, progress, **changes)

    def before() -> None:
        _refuse_beside_jobs(opened)
        disk = disk_need(run.evaluate(targets), run.folder.path, run.options.quota)
        if (refusal := disk_refusal(disk, run.folder.path)) is not None:
            raise refusal
        run.folder.keep_study(opened.file)
        if opened.choice is not None:
            record(run.folder.path, opened.choice)

    def after(result: RunResult) -> None:
        conclude(run.folder, opened.study.canonical(), result)

    return run.execute(targets, force=force, before=before, after=after)


def _refuse_beside_jobs(opened: OpenedStudy) -> None:
    """Refuses to run units beside queued jobs."""
    alive = jobs_now(opened.folder, ask_accounting=False).alive
    if alive:
        raise MechstudyError(
            "jobs of this study are in the queue",
            where=str(opened.folder),
            facts={"jobs": ", ".join(sorted({queued.job for queued in alive.values()}))},
            fix=f"wait for them (`{opened.command('status')}`), or `{opened.command('cancel')}`: finished units are "
            "kept",
        )
