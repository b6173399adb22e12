"""Runs the units of an opened study, keeps its run folder up to date, and refuses what cannot run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mechstudy.behaviours.user import read_prompts
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.machine.devices import resolve_device
from mechstudy.models.context import context_length
from mechstudy.models.folder import model_name, read_config
from mechstudy.models.tokenizer import bare_tokenizer, encode, load_tokenizer
from mechstudy.models.unknown_token import unknown_token
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
        MechstudyError: a device does not exist here, the disk or the quota is too small, or jobs of this study are in
            the queue.
    """
    run = run_of(opened, progress, **changes)
    _check_devices(run, targets, force=force)

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


def _check_devices(run: Run, targets: Sequence[str] | None = None, *, force: Sequence[str] = ()) -> None:
    """Checks the devices of all that would run, before the first unit does.

    Raises:
        MechstudyError: a device does not exist on this machine.
    """
    if {run.options.device, *(run.options.of(name).device for name in run.options.by_unit)} <= {"auto", "cpu"}:
        return
    evaluation = run.evaluate(targets, force)
    units = (evaluation.nodes[name].unit for name in evaluation.to_run)
    for device in sorted({run.options.of(unit.name).device for unit in units if unit.phase.uses_device}):
        resolve_device(device)


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
    """The error of the first file of these units that cannot be used; None where there is none, or no tokenizer yet.

    A file that fails with the bare tokenizer, or whose prompts it may see otherwise, is checked with the tokenizer that
    the unit will use, which loads torch.
    """
    model, folder = opened.study.model, opened.model
    specs = [PromptsSpec.of(unit) for unit in opened.made_by(PromptsPhase) if unit.name in names]
    files = [spec for spec in specs if spec.file]
    if not files or folder is None or (bare := bare_tokenizer(folder)) is None:
        return None
    context = context_length(read_config(folder))
    for spec in files:
        source = spec.source(opened.options.base)
        try:
            read = read_prompts(source, bare.encode, context, bare.unknown)
        except MechstudyError:
            pass
        else:
            texts = (pair.clean for pairs in read.pairs.values() for pair in pairs)
            if not model.chat and not _bring_bos(folder, texts):
                continue
        tokenizer = load_tokenizer(folder, trust_remote_code=model.trust_remote_code)
        instruction = model.chat_instruction if model.chat else None
        whole = partial(encode, tokenizer, instruction=instruction, date=model.chat_date, name=model.source)
        try:
            read_prompts(source, whole, context, unknown_token(tokenizer, model_name(folder)))
        except MechstudyError as error:
            return error
    return None


def _bring_bos(folder: Path, texts: Iterable[str]) -> bool:
    """Whether prompts begin with the BOS token's text, which settings beside ``tokenizer.json`` may add too."""
    try:
        bos = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("bos_token")
    except (OSError, ValueError, AttributeError):
        return False
    bos = bos.get("content") if isinstance(bos, dict) else bos
    return isinstance(bos, str) and bool(bos) and any(text.startswith(bos) for text in texts)
