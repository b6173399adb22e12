"""Runs the units of an opened study, keeps its run folder up to date, and refuses what cannot run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from mechstudy.behaviours.user import load_jsonl
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.models.tokenizer import bare_encode, encode, load_tokenizer
from mechstudy.planning.disk import disk_need, disk_refusal
from mechstudy.planning.opened_study import OpenedStudy, record_resolved
from mechstudy.planning.source_choice import record
from mechstudy.runner.completion import RunResult, conclude
from mechstudy.runner.run import Run
from mechstudy.runner.slurm.job_status import jobs_now
from mechstudy.study.phases.prompts import PromptsPhase, PromptsSpec


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
        record_resolved(opened)
        if opened.choice is not None:
            record(run.folder.path, opened.choice)

    after = partial(conclude, run.folder, opened.study.canonical())
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


def prompts_refusal(opened: OpenedStudy, names: Collection[str]) -> MechstudyError | None:
    """The error of the first broken file of these units; None where there is none, or no tokenizer yet.

    A file that fails with the bare tokenizer is checked again with the tokenizer that the unit will use, which loads
    torch.
    """
    model = opened.study.model
    specs = [PromptsSpec.of(unit) for unit in opened.made_by(PromptsPhase) if unit.name in names]
    files = [spec.file for spec in specs if spec.file]
    if not files or opened.model is None or (bare := bare_encode(opened.model)) is None:
        return None
    for file in files:
        path = opened.options.base / file
        try:
            load_jsonl(path, bare)
        except MechstudyError:
            tokenizer = load_tokenizer(opened.model, trust_remote_code=model.trust_remote_code)
            instruction = model.chat_instruction if model.chat else None
            try:
                load_jsonl(
                    path, partial(encode, tokenizer, instruction=instruction, date=model.chat_date, name=model.source)
                )
            except MechstudyError as error:
                return error
    return None
