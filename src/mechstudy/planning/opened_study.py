"""An opened study file: its units, its run folder, and the options of its runs. Torch-free."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.core.config import Lines
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.sizes import human
from mechstudy.machine.runtime_options import RunOptions, RuntimeOptions
from mechstudy.models.folder import hub_revision, read_config
from mechstudy.models.local_files import (
    NOT_FETCHED,
    cache_defect,
    config_without_fetching,
    local_folder,
    model_names,
    pinned_source,
)
from mechstudy.models.shapes import ModelShapes, shapes_of
from mechstudy.models.sources import resolve_source
from mechstudy.planning.chat_date import record_chat_date, with_chat_date
from mechstudy.planning.source_choice import RESOLVED, Choice, choose_source, keep, with_source
from mechstudy.store.digests import bytes_to_read
from mechstudy.store.manifest import MANIFEST, read_manifest
from mechstudy.study.dag import Evaluation, Graph
from mechstudy.study.fingerprints import Content, model_files
from mechstudy.study.phases.base import Phase, made_by
from mechstudy.study.phases.model import ModelPhase, content_of
from mechstudy.study.preflight import check_study, notes, outlines
from mechstudy.study.published import Published, published_dictionaries, with_published
from mechstudy.study.published_notes import published_notes
from mechstudy.study.run_folder import ARTIFACTS, RunFolder
from mechstudy.study.study import Study, load_study
from mechstudy.study.token_check import token_notes
from mechstudy.study.unit import Unit
from mechstudy.study.units import build_units, with_earlier_specs

REVISION = "model.revision"  # in resolved.json
_LONG = 1 << 30  # bytes that take a second or more to read


@dataclass(frozen=True)
class OpenedStudy:
    """A study with everything that is known before a model is loaded.

    ``model`` is the model's local folder, or None before it is fetched: ids of units are then provisional.
    ``notes`` list the numbers of the study that the data cannot reach. ``choice`` is the source that
    ``dictionaries.source: auto`` resolved to; ``study`` and ``units`` already use it. ``published`` are those of
    ``dictionaries.from``.
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
    published: tuple[Published, ...] = ()

    @property
    def options(self) -> RunOptions:
        """The options of a run, from the study's ``compute`` section."""
        compute = self.study.compute
        return RunOptions(
            **{name: getattr(compute, name) for name in RuntimeOptions.model_fields},
            quota=self.study.storage.quota_bytes,
            seed=self.study.seed,
            model_revision=None if self.model is None else hub_revision(self.model),
            base=self.file.parent.resolve(),
        )

    def evaluate(self) -> Evaluation:
        """Every unit against the run's folder."""
        return Evaluation(Graph(self.units), RunFolder(self.folder).store)

    def made_by(self, phase: type[Phase[Any, Any]], **about: Any) -> list[Unit]:
        """The units of a phase, with these attributes."""
        return made_by(self.units, phase, **about)

    def command(self, name: str, *words: str) -> str:
        """A command line of mechstudy for this study, with its overrides and folder."""
        sets = [word for override in self.overrides for word in ("--set", override)]
        out = [] if self.folder == Path("runs") / self.study.name else ["--out", str(self.folder)]
        return shlex.join(["mechstudy", name, str(self.file), *words, *sets, *out])


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
        fetch: fetch and convert the model if it is not on this machine.
        say: receives a line before each slow step.

    Raises:
        MechstudyError: the study is invalid (with file and line).
    """
    file = Path(file)
    study, lines = load_study(file, overrides)
    base = file.parent.resolve()
    out = out or Path("runs") / study.name
    if out.exists() and not out.is_dir():
        raise MechstudyError("a run is a folder, and this is a file", where=str(out), fix="another --out")
    try:
        own_prompts = outlines(study, base)
        check_study(study, own_prompts)
    except MechstudyError as error:
        raise _located(error, lines) from error
    try:
        source, pin_note = _pinned(out, study.model.source, base)
        folder, config = _model(source, base, fetch, say)
        defect = cache_defect(source) if folder is None else None
        shapes = shapes_of(config)
    except MechstudyError as error:
        what = error.what if error.where is None else f"{error.what} ({error.where})"
        raise lines.error("model.source", what, facts=error.facts, fix=error.fix) from error
    try:
        study, date_notes = with_chat_date(study, folder, out)
    except MechstudyError as error:
        raise _located(error, lines) from error
    content = _recorded(out, study.model.source) if folder is None else _content(study, folder, say)
    store = RunFolder(out).store

    def units_of(named: Study) -> list[Unit]:
        units = build_units(named, shapes, content.fingerprint, base, own_prompts, content.sha256, published)
        return with_earlier_specs(units, store, base)

    choice: Choice | None = None
    published: tuple[Published, ...] = ()
    try:
        more_notes = tuple(token_notes(study, config, folder, base))
        if study.dictionaries.published is not None:
            published = published_dictionaries(study.dictionaries, shapes, base)
            study = with_published(study, published)
            more_notes += tuple(published_notes(published, model_names(study.model.source, folder, config)))
        if study.dictionaries.source == "auto":
            choice = choose_source(study, units_of, out)
            study = with_source(study, choice.source)
        units = units_of(study)
    except MechstudyError as error:
        raise _located(error, lines) from error
    study_notes = (
        *notes(study, own_prompts),
        *more_notes,
        *([choice.note()] if choice is not None else []),
        *pin_note,
        *([] if defect is None else [_refetched(source, defect)]),
        *date_notes,
    )
    for note in study_notes if fetch else ():
        say(f"note: {note}")
    return OpenedStudy(file, study, lines, shapes, folder, units, out, tuple(overrides), study_notes, choice, published)


def record_resolved(opened: OpenedStudy) -> None:
    """Keeps in a run that begins what the study left open: the commit of a hub's model, and the prompts' date."""
    record_chat_date(opened.folder, opened.study)
    if opened.study.model.source.startswith("hf:") and opened.options.model_revision is not None:
        pin = {"source": opened.study.model.source, "commit": opened.options.model_revision}
        keep(opened.folder, REVISION, pin)


def _model(source: str, base: Path, fetch: bool, say: Callable[[str], None]) -> tuple[Path | None, Mapping[str, Any]]:
    """The model's folder, None before it is fetched, and its ``config.json``."""
    folder = local_folder(source, base)
    if folder is None and not fetch and (config := config_without_fetching(source, base)) is not None:
        return None, config
    if folder is None:
        say(f"fetching {source}; this happens once")
        folder = resolve_source(source, base=base)
    return folder, read_config(folder)


def _refetched(source: str, defect: MechstudyError) -> str:
    return f"{source} is incomplete in the hub's cache ({defect.what}; {defect.where}): a run fetches it again"


def _content(study: Study, folder: Path, say: Callable[[str], None]) -> Content:
    code = study.model.trust_remote_code
    if (unread := bytes_to_read(model_files(folder, code=code).values())) > _LONG:
        say(f"reading the model's files for their checksums ({human(unread)}); this happens once")
    return content_of(study.model.source, folder, code=code)


def _pinned(run: Path, source: str, base: Path) -> tuple[str, list[str]]:
    """The source at the commit that the run's model unit used, if it is a hub's; and a note where that has moved on."""
    kind, _, rest = source.partition(":")
    if kind != "hf":
        return source, []
    begun: list[tuple[str, str]] = []
    with suppress(MechstudyError, KeyError, TypeError):
        kept = read_json(run / RESOLVED)[REVISION] if (run / RESOLVED).exists() else {}
        if kept.get("source") == source:
            begun.append(("recorded", str(kept["commit"])))  # after every time
    for artifact in RunFolder(run).store.others(ModelPhase.name, ModelPhase.name, ""):
        with suppress(MechstudyError):
            model = artifact.read_json("model.json")
            if model.get("source") == source and model.get("revision"):
                begun.append((str(artifact.manifest.get("started")), str(model["revision"])))
    if not begun:
        return source, []
    commit = max(begun)[1]
    newer: str | None = None
    with suppress(MechstudyError):  # a broken snapshot, which is not the one that is used
        now = local_folder(source, base)
        newer = None if now is None else hub_revision(now)
    moved = f"{source} is commit {commit[:12]} in this run, as it began; in the cache it is now {str(newer)[:12]}"
    fix = f"name another --out, or model.source: hf:{rest.partition('@')[0]}@{newer}, to study that"
    return pinned_source(source, commit), [f"{moved}: {fix}"] if newer not in (None, commit) else []


def _recorded(run: Path, source: str) -> Content:
    """The identity that the run's artifacts record of a model that is not on this machine.

    An archive may come from another machine. `NOT_FETCHED` where there is no record, or several disagree.
    """
    manifests = [read_manifest(path.parent) for path in (run / ARTIFACTS / ModelPhase.name).glob(f"*/{MANIFEST}")]
    specs = [manifest["spec"] for manifest in manifests if manifest is not None]
    found = {
        Content(str(spec.get("fingerprint")), spec.get("sha256")) for spec in specs if spec.get("source") == source
    }
    return found.pop() if len(found) == 1 else Content(NOT_FETCHED)


def _located(error: MechstudyError, lines: Lines) -> MechstudyError:
    """The error with its file and line, if it names a field of the study."""
    section = (error.where or "").partition(".")[0]
    if section in Study.model_fields:
        return lines.error(error.where or "", error.what, facts=error.facts, fix=error.fix)
    return error
