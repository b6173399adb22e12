"""A study file opened: its units, its run folder, and how to run them. Torch-free."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mechstudy.core.config import Lines
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.models.local_files import NOT_FETCHED, config_of, config_without_fetching, local_folder
from mechstudy.models.shapes import ModelShapes, shapes_of
from mechstudy.models.sources import resolve_source
from mechstudy.planning.disk import disk_need, disk_refusal
from mechstudy.planning.source_choice import Choice, choose_source, record, with_source
from mechstudy.runner.results import RunResult
from mechstudy.runner.run import Run
from mechstudy.runner.run_unit import LOG, Options
from mechstudy.store.manifest import MANIFEST, read_manifest
from mechstudy.study.fingerprints import model_fingerprint
from mechstudy.study.preflight import check_study, notes, outlines
from mechstudy.study.run_folder import ARTIFACTS
from mechstudy.study.study import Study, load_study
from mechstudy.study.unit import Unit
from mechstudy.study.units import build_units


@dataclass(frozen=True)
class OpenedStudy:
    """A study with everything known about it before anything is loaded.

    ``model`` is the model's local folder, or None while it is not fetched: then no unit's id is known to be
    the final one. ``notes`` say where less will be done than a number in the study asks for. ``choice`` is what
    ``dictionaries.source: auto`` came to; ``study`` and ``units`` have it.
    """

    file: Path
    study: Study
    lines: Lines
    shapes: ModelShapes
    model: Path | None
    units: list[Unit]
    folder: Path
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    choice: Choice | None = None

    @property
    def options(self) -> Options:
        """How its units run, as the study's ``compute`` says."""
        c = self.study.compute
        return Options(
            device=c.device,
            threads=c.threads,
            max_parallel=c.max_parallel,
            world_size=c.world_size,
            batch_tokens=c.batch_tokens,
            quota=self.study.storage.quota_bytes,
            stage=c.stage,
            verify_reads=c.verify_reads,
            checkpointing=c.checkpointing,
            tf32=c.tf32,
            compile=c.compile,
            stripe=c.stripe,
            monitor=c.monitor,
            monitor_seconds=c.monitor_seconds,
            expected_usage=dict(c.expected_usage),
            seed=self.study.seed,
            base=self.file.parent.resolve(),
        )

    def command(self, name: str, *words: str) -> str:
        """A command of mechstudy for this study, with the overrides and the folder it was opened with."""
        sets = [word for override in self.overrides for word in ("--set", override)]
        out = [] if self.folder == Path("runs") / self.study.name else ["--out", str(self.folder)]
        return shlex.join(["mechstudy", name, str(self.file), *words, *sets, *out])

    def run(self, progress: Progress | None = None, **changes: object) -> Run:
        """Its engine; ``changes`` are fields of `Options`."""
        options = replace(self.options, **changes)  # type: ignore[arg-type]  # fields by name
        return Run(self.folder, self.units, options, progress)


def open_study(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    fetch: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> OpenedStudy:
    """Reads a study file and builds its units.

    Args:
        overrides: ``key=value``, as ``--set`` gives them.
        out: the run's folder; by default ``runs/<name>`` below the current folder.
        fetch: fetch and convert the model where it is not here yet.
        say: told what takes long.

    Raises:
        MechstudyError: any mistake in the study, at its file and line.
    """
    file = Path(file)
    study, lines = load_study(file, overrides)
    base = file.parent.resolve()
    try:
        given = outlines(study, base)
        check_study(study, given)
    except MechstudyError as error:
        raise _located(error, lines) from error
    try:
        folder, shapes = _model(study.model.source, base, fetch, say)
    except MechstudyError as error:
        raise _at_field(error, lines, "model.source") from error
    out = out or Path("runs") / study.name
    fingerprint = _recorded(out, study.model.source) if folder is None else model_fingerprint(folder)
    choice: Choice | None = None
    try:
        if study.dictionaries.source == "auto":
            choice = choose_source(study, lambda named: build_units(named, shapes, fingerprint, base, given), out)
            study = with_source(study, choice.source)
        units = build_units(study, shapes, fingerprint, base, given)
    except MechstudyError as error:
        raise _located(error, lines) from error
    told = (*notes(study, given), *([choice.note()] if choice is not None else []))
    for note in told if fetch else ():
        say(f"note: {note}")
    return OpenedStudy(file, study, lines, shapes, folder, units, out, tuple(overrides), told, choice)


def execute(
    opened: OpenedStudy,
    targets: Sequence[str] | None = None,
    *,
    force: Sequence[str] = (),
    progress: Progress | None = None,
    **changes: object,
) -> RunResult:
    """Runs a study's units; afterwards its folder holds the newest summary and report."""
    from mechstudy.runner.summary import write_summary
    from mechstudy.study.study import study_dict

    run = opened.run(progress, **changes)

    def before() -> None:
        _refuse_beside_jobs(opened)
        disk = disk_need(run.evaluate(targets), run.folder.path, run.options.quota)
        if (refusal := disk_refusal(disk, run.folder.path)) is not None:
            raise refusal
        run.folder.keep_study(opened.file)
        if opened.choice is not None:
            record(run.folder.path, opened.choice)

    def after(result: RunResult) -> None:
        report = next((unit.artifact for unit in result.units if unit.phase == "report"), None)
        if report is not None:
            run.folder.point_report_to(report)
        write_summary(opened.folder, study_dict(opened.study), result)

    return run.execute(targets, force=force, before=before, after=after)


def _refuse_beside_jobs(opened: OpenedStudy) -> None:
    """Refuses to run what jobs in the queue are going to run."""
    from mechstudy.runner.slurm.job_status import jobs_now

    alive = jobs_now(opened.folder, ask_accounting=False).alive
    if alive:
        raise MechstudyError(
            "jobs of this study are in the queue",
            where=str(opened.folder),
            facts={"jobs": ", ".join(sorted({queued.job for queued in alive.values()}))},
            fix=f"wait for them (`{opened.command('status')}`), or `{opened.command('cancel')}`: what is finished is "
            "kept",
        )


def _model(source: str, base: Path, fetch: bool, say: Callable[[str], None]) -> tuple[Path | None, ModelShapes]:
    folder = local_folder(source, base)
    if folder is None and not fetch and (config := config_without_fetching(source, base)) is not None:
        return None, shapes_of(config)
    if folder is None:
        say(f"fetching {source}; this happens once")
        folder = resolve_source(source, base=base)
    return folder, shapes_of(config_of(folder))


def _recorded(run: Path, source: str) -> str:
    """The fingerprint of a model that is not on this machine, as the run was made with it: an archive may come from
    another machine. Where there is none, or several, nothing is known."""
    manifests = [read_manifest(path.parent) for path in (run / ARTIFACTS / "model").glob(f"*/{MANIFEST}")]
    specs = [manifest["spec"] for manifest in manifests if manifest is not None]
    found = {str(spec.get("fingerprint")) for spec in specs if spec.get("source") == source}
    return found.pop() if len(found) == 1 else NOT_FETCHED


def _at_field(error: MechstudyError, lines: Lines, field: str) -> MechstudyError:
    """The error at a field of the study; where it stood before becomes part of the text."""
    what = error.what if error.where is None else f"{error.what} ({error.where})"
    return lines.error(field, what, facts=error.facts, fix=error.fix)


def _located(error: MechstudyError, lines: Lines) -> MechstudyError:
    """At its file and line, where the error names a field of the study."""
    section = (error.where or "").partition(".")[0]
    if section in Study.model_fields:
        return lines.error(error.where or "", error.what, facts=error.facts, fix=error.fix)
    return error


def log_file(folder: Path) -> Path:
    """Where a run's messages are kept."""
    return folder / LOG
