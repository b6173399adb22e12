"""`mechstudy clean`: what can be made again goes, what cannot stays, and each says how much, how long, or why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mechstudy.archive.rebuildable import Remaking
from mechstudy.archive.restore import STAGING
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.monitoring.instrumentation import PROFILE
from mechstudy.monitoring.record import SUFFIX as USAGE
from mechstudy.monitoring.record import usage_file
from mechstudy.runner.study_run import OpenedStudy
from mechstudy.store.artifacts import DAMAGED, UNPUBLISHED, Artifact, ArtifactStore
from mechstudy.store.lock import RunLock
from mechstudy.store.manifest import read_manifest, slug
from mechstudy.study.dag import Evaluation
from mechstudy.study.retention import payload_of
from mechstudy.study.run_folder import ARTIFACTS, REPORT

LOG = "cleaned.jsonl"
What = Literal["payload", "unfinished", "leftover", "damaged", "profile", "other version"]


@dataclass(frozen=True)
class Entry:
    """Something that may go: ``name`` below the run's folder, bytes it frees, seconds to make it again (None: not
    known), and ``kept``: why it stays, where it does."""

    what: What
    name: str
    bytes: int
    seconds: float | None = None
    kept: str | None = None


@dataclass(frozen=True)
class Cleaned:
    """``entries`` as found; ``freed`` bytes, ``failed`` name -> why: nothing of either on a dry run."""

    entries: list[Entry]
    freed: int = 0
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def going(self) -> list[Entry]:
        """What goes, or would."""
        return [entry for entry in self.entries if entry.kept is None]


@dataclass(frozen=True)
class _Found:
    entry: Entry
    remove: Callable[[], int]


def clean(
    opened: OpenedStudy, *, really: bool = False, other_versions: bool = False, elsewhere: bool = False
) -> Cleaned:
    """Looks, and with ``really`` deletes, while nobody else works in the run's folder.

    Args:
        other_versions: also whole artifacts that no unit of the study as it is now has made.
        elsewhere: also what was made on another machine, whose bytes this one may not give again.

    Raises:
        MechstudyError: there is no run, it is in use, or its disk cannot be read.
    """
    root = opened.folder
    if not (root / ARTIFACTS).is_dir():
        raise MechstudyError("there is no run here", where=str(root), fix="run the study first, or give --out")
    with RunLock(root):
        found = list(_Survey(opened, other_versions, elsewhere).found())
        entries = [item.entry for item in found]
        if not really:
            return Cleaned(entries)
        freed, failed = 0, []
        for item in found:  # payload is last: its manifest has to be written, and there may be no room for that yet
            if item.entry.kept is not None:
                continue
            try:
                freed += item.remove()
            except (OSError, MechstudyError) as error:
                failed.append((item.entry.name, str(error)))
        return Cleaned(entries, freed, tuple(failed))


class _Survey:
    """Everything in a run's folder that may go."""

    def __init__(self, opened: OpenedStudy, other_versions: bool, elsewhere: bool) -> None:
        self.opened, self.other_versions = opened, other_versions
        self.root = opened.folder
        self.run = opened.run(NullProgress())
        self.store: ArtifactStore = self.run.folder.store
        self.evaluation: Evaluation = self.run.evaluate()
        self.artifacts = self.store.all()
        self.remaking = Remaking(opened, self.artifacts, elsewhere=elsewhere)
        nodes = self.evaluation.nodes.values()
        self.ids = {node.id for node in nodes if node.id is not None}

    def found(self) -> Iterator[_Found]:
        yield from self._beside()
        yield from self._unpublished()
        yield from self._others()
        yield from self._payloads()

    # ------------------------------------------------------------------ what lies beside artifacts

    def _beside(self) -> Iterator[_Found]:
        if (self.root / PROFILE).is_dir():
            yield self._folder("profile", self.root / PROFILE)
        for staging in sorted(self.root.glob(f"{STAGING}*")):
            yield self._folder("leftover", staging)
        yield from self._usage_of_nothing()

    def _usage_of_nothing(self) -> Iterator[_Found]:
        """What units used whose artifacts are gone, finished or not: a run would write it anew."""
        for file in sorted(self.store.root.glob(f"*/*{USAGE}")):
            artifact = file.with_name(file.name.removesuffix(USAGE))
            if not _described(artifact):
                size = file.lstat().st_size

                def remove(file: Path = file, size: int = size) -> int:
                    file.unlink(missing_ok=True)
                    return size

                yield _Found(Entry("leftover", file.relative_to(self.root).as_posix(), size), remove)

    def _unpublished(self) -> Iterator[_Found]:
        for folder in sorted(self.store.root.glob("*/*")):
            if not folder.is_dir():
                continue
            final = folder.with_suffix("")
            if folder.suffix == ".partial":
                if not self._resumable(folder):
                    yield self._folder("unfinished", folder)
            elif folder.suffix == ".removed":
                yield self._folder("leftover", folder)
            elif folder.suffix == ".replaced":
                kept = None if self._is_whole(final) else "it is the only copy of an artifact that was made again"
                yield self._folder("leftover", folder, kept)
            elif folder.suffix == DAMAGED:
                yield self._folder("damaged", folder, None if self._is_whole(final) else self._damaged(folder))

    def _resumable(self, partial: Path) -> bool:
        """Whether a unit of the study as it is now would go on with it, or may: some ids are not known yet."""
        for node in self.evaluation.nodes.values():
            unit = node.unit
            if partial.parent.name != slug(unit.phase):
                continue
            if node.id is None:
                if partial.name.startswith(f"{slug(unit.name)}-"):
                    return True
            elif partial.name == f"{self.store.folder(unit.phase, unit.name, node.id).name}.partial":
                return node.artifact is None or node.artifact.is_discarded
        return False

    def _is_whole(self, folder: Path) -> bool:
        manifest = read_manifest(folder)
        return manifest is not None and any(artifact.path == folder for artifact in self.artifacts)

    def _damaged(self, folder: Path) -> str | None:
        manifest = read_manifest(folder)
        if manifest is None:
            return "its manifest cannot be read, and no sound copy is there"
        return self.remaking.obstacle(Artifact(folder, manifest))

    def _folder(self, what: What, folder: Path, kept: str | None = None) -> _Found:
        usage = usage_file(folder.with_suffix(""))
        alone = not _described(folder.with_suffix(""), but=folder)
        size = _size(folder) + (_size_of(usage) if alone else 0)

        def remove() -> int:
            shutil.rmtree(folder)
            if alone:
                usage.unlink(missing_ok=True)
            return size

        return _Found(Entry(what, folder.relative_to(self.root).as_posix(), size, None, kept), remove)

    # ------------------------------------------------------------------ artifacts

    def _others(self) -> Iterator[_Found]:
        shown = (self.root / REPORT).resolve()
        for artifact in self.artifacts:
            if artifact.id in self.ids or self._has_unknown_id(artifact):
                continue
            kept = None if self.other_versions else "--other-versions lets it go"
            if artifact.path.resolve() == shown:
                kept = "it is the report that the run's folder shows"
            elif kept is None:
                kept = self.remaking.obstacle(artifact)
            size = _size(artifact.path) + _size_of(usage_file(artifact.path))

            def remove(artifact: Artifact = artifact, size: int = size) -> int:
                self._note(artifact, size)
                self.store.remove(artifact)
                usage_file(artifact.path).unlink(missing_ok=True)
                return size

            yield _Found(self._entry("other version", artifact, size, kept), remove)

    def _has_unknown_id(self, artifact: Artifact) -> bool:
        """Whether it may be of the study as it is now: its unit's id cannot be told while a gate stops it."""
        nodes = self.evaluation.nodes
        return artifact.unit in nodes and nodes[artifact.unit].id is None

    def _payloads(self) -> Iterator[_Found]:
        to_run = self.evaluation.to_run
        for name, node in self.evaluation.nodes.items():
            unit, artifact = node.unit, node.artifact
            if artifact is None or unit.retention == "keep":
                continue
            gone = set(artifact.manifest.get("discarded", ()))
            there = [n for n in payload_of(artifact.manifest["files"], unit.discard_patterns) if n not in gone]
            if not there:
                continue
            size = sum(int(artifact.manifest["files"][n]["size"]) for n in there)
            kept = None
            if not self.evaluation.is_idle(name, to_run):
                waiting = [r for r in self.evaluation.readers(name) if self.evaluation.nodes[r].artifact is None]
                kept = f"{waiting[0]} still needs it" if waiting else "a unit that has to run needs it"
            kept = kept or self.remaking.obstacle(artifact)

            def remove(artifact: Artifact = artifact, there: list[str] = there) -> int:
                return self.store.discard(artifact, there)

            yield _Found(self._entry("payload", artifact, size, kept), remove)

    def _entry(self, what: What, artifact: Artifact, size: int, kept: str | None) -> Entry:
        seconds = artifact.manifest.get("seconds")
        return Entry(what, f"{ARTIFACTS}/{artifact.name}", size, None if seconds is None else float(seconds), kept)

    def _note(self, artifact: Artifact, size: int) -> None:
        """Puts down what an artifact of another version was made from: with it goes its manifest."""
        keys = ("unit", "phase", "id", "version", "spec", "inputs", "seconds")
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "bytes": size}
        line |= {key: artifact.manifest.get(key) for key in keys}
        with suppress(OSError), (self.root / LOG).open("a") as log:  # a full disk is no reason not to make room
            log.write(json.dumps(line) + "\n")


def _described(artifact: Path, but: Path | None = None) -> bool:
    """Whether anything ``but`` one folder is there that the usage file beside an artifact may be of."""
    folders = {artifact.with_name(artifact.name + suffix) for suffix in ("", *UNPUBLISHED)} - {but}
    return any(folder is not None and folder.exists() for folder in folders)


def _size_of(file: Path) -> int:
    with suppress(OSError):
        return file.lstat().st_size
    return 0


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total
