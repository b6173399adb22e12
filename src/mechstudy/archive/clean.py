"""Clean-up of a run: what can be rebuilt is deleted, what cannot is kept, with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from mechstudy.archive.rebuildable import Rebuilding
from mechstudy.archive.restore import STAGING
from mechstudy.core.errors import MechstudyError
from mechstudy.monitoring.instrumentation import PROFILE
from mechstudy.monitoring.record import USAGE_SUFFIX, usage_file
from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.store.artifacts import DAMAGED, UNPUBLISHED, Artifact
from mechstudy.store.lock import RunLock
from mechstudy.store.manifest import read_manifest, slug
from mechstudy.study.run_folder import ARTIFACTS, REPORT
from mechstudy.study.unit import payload_of

LOG = "cleaned.jsonl"
What = Literal["payload", "unfinished", "leftover", "damaged", "profile", "other version"]


@dataclass(frozen=True)
class Entry:
    """Something that can be deleted.

    ``name`` is a path below the run's folder, ``bytes`` its size, ``seconds`` the time to rebuild it (None: unknown),
    and ``kept`` the reason why it is not deleted, if there is one.
    """

    what: What
    name: str
    bytes: int
    seconds: float | None = None
    kept: str | None = None


@dataclass(frozen=True)
class Cleaned:
    """All entries, the bytes freed, and (name, reason) of failed deletions; a dry run frees nothing."""

    entries: list[Entry]
    freed: int = 0
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def going(self) -> list[Entry]:
        """Entries that are deleted, or would be."""
        return [entry for entry in self.entries if entry.kept is None]


_Candidate = tuple[Entry, Callable[[], object]]  # with what deletes it


def clean_run(
    opened: OpenedStudy, *, really: bool = False, other_versions: bool = False, elsewhere: bool = False
) -> Cleaned:
    """Lists what can be deleted, and with ``really`` deletes it, while the run is locked.

    Args:
        other_versions: also whole artifacts of other versions of the study.
        elsewhere: also what another machine made, whose bytes may differ when rebuilt here.

    Raises:
        MechstudyError: there is no run, it is in use, or its disk cannot be read.
    """
    root = opened.folder
    if not (root / ARTIFACTS).is_dir():
        raise MechstudyError("there is no run here", where=str(root), fix="run the study first, or give --out")
    with RunLock(root):
        # Payload is last: its manifest has to be written, and on a full disk there may be no room for that yet.
        candidates = list(_Survey(opened, other_versions, elsewhere).candidates())
        entries = [entry for entry, _ in candidates]
        if not really:
            return Cleaned(entries)
        freed, failed = 0, []
        for entry, remove in candidates:
            if entry.kept is None:
                try:
                    remove()
                    freed += entry.bytes
                except (OSError, MechstudyError) as error:
                    failed.append((entry.name, str(error)))
        return Cleaned(entries, freed, tuple(failed))


class _Survey:
    """Everything in a run's folder that can be deleted."""

    def __init__(self, opened: OpenedStudy, other_versions: bool, elsewhere: bool) -> None:
        self.other_versions = other_versions
        self.root = opened.folder
        self.evaluation = opened.evaluate()
        self.nodes = self.evaluation.nodes
        self.store = self.evaluation.store
        self.artifacts = self.store.all()
        self.rebuilding = Rebuilding(opened, self.artifacts, elsewhere=elsewhere)

    def candidates(self) -> Iterator[_Candidate]:
        if (self.root / PROFILE).is_dir():
            yield self._folder("profile", self.root / PROFILE)
        for staging in sorted(self.root.glob(f"{STAGING}*")):
            yield self._folder("leftover", staging)
        yield from self._stray_usage()
        yield from self._unpublished()
        yield from self._other_versions()
        yield from self._payloads()

    def _stray_usage(self) -> Iterator[_Candidate]:
        """Usage files of artifacts that are gone, finished or not."""
        for file in sorted(self.store.root.glob(f"*/*{USAGE_SUFFIX}")):
            if not _describes_any(file.with_name(file.name.removesuffix(USAGE_SUFFIX))):
                entry = Entry("leftover", file.relative_to(self.root).as_posix(), file.lstat().st_size)
                yield entry, partial(file.unlink, missing_ok=True)

    def _unpublished(self) -> Iterator[_Candidate]:
        for folder in sorted(path for path in self.store.root.glob("*/*") if path.is_dir()):
            final = folder.with_suffix("")
            if folder.suffix == ".partial" and not self._is_resumable(folder):
                yield self._folder("unfinished", folder)
            elif folder.suffix == ".removed":
                yield self._folder("leftover", folder)
            elif folder.suffix == ".replaced":
                kept = None if self._is_complete(final) else "it is the only copy of a replaced artifact"
                yield self._folder("leftover", folder, kept)
            elif folder.suffix == DAMAGED:
                kept = None if self._is_complete(final) else self._damaged_obstacle(folder)
                yield self._folder("damaged", folder, kept)

    def _is_resumable(self, folder: Path) -> bool:
        """Whether a unit of the present study resumes from it, or may: some ids are not known yet."""
        for node in self.nodes.values():
            unit = node.unit
            if folder.parent.name != slug(unit.phase.name):
                continue
            if node.id is None:
                if folder.name.startswith(f"{slug(unit.name)}-"):
                    return True
            elif folder.name == f"{self.store.folder(*node.key).name}.partial":
                return node.artifact is None or node.artifact.is_discarded
        return False

    def _is_complete(self, folder: Path) -> bool:
        return any(artifact.path == folder for artifact in self.artifacts)

    def _damaged_obstacle(self, folder: Path) -> str | None:
        manifest = read_manifest(folder)
        if manifest is None:
            return "its manifest cannot be read, and there is no sound copy"
        return self.rebuilding.obstacle(Artifact(folder, manifest))

    def _folder(self, what: What, folder: Path, kept: str | None = None) -> _Candidate:
        """A folder, with the usage file beside it unless that describes another folder too."""
        usage = usage_file(folder.with_suffix(""))
        files = [] if _describes_any(folder.with_suffix(""), but=folder) else [usage]

        def remove() -> None:
            shutil.rmtree(folder)
            for file in files:
                file.unlink(missing_ok=True)

        return Entry(what, folder.relative_to(self.root).as_posix(), _size(folder, *files), kept=kept), remove

    def _other_versions(self) -> Iterator[_Candidate]:
        ids = {node.id for node in self.nodes.values()}
        unknown = {name for name, node in self.nodes.items() if node.id is None}  # a gate stops them
        shown = (self.root / REPORT).resolve()
        for artifact in self.artifacts:
            if artifact.id in ids or artifact.unit in unknown:
                continue
            kept = None if self.other_versions else "--other-versions deletes it"
            if artifact.path.resolve() == shown:
                kept = "it is the report that the run's folder shows"
            elif kept is None:
                kept = self.rebuilding.obstacle(artifact)
            entry = _entry("other version", artifact, _size(artifact.path, usage_file(artifact.path)), kept)
            yield entry, partial(self._remove, artifact, entry.bytes)

    def _remove(self, artifact: Artifact, size: int) -> None:
        """Deletes an artifact, and logs what it was made from."""
        keys = ("unit", "phase", "id", "version", "spec", "inputs", "seconds")
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "bytes": size}
        line |= {key: artifact.manifest.get(key) for key in keys}
        with suppress(OSError), (self.root / LOG).open("a") as log:  # on a full disk, deleting matters more
            log.write(json.dumps(line) + "\n")
        self.store.remove(artifact)
        usage_file(artifact.path).unlink(missing_ok=True)

    def _payloads(self) -> Iterator[_Candidate]:
        to_run = self.evaluation.to_run
        for name, node in self.nodes.items():
            unit, artifact = node.unit, node.artifact
            if artifact is None or unit.retention == "keep":
                continue
            discarded = set(artifact.manifest.get("discarded", ()))
            files = artifact.manifest["files"]
            payload = [file for file in payload_of(files, unit.phase.payload) if file not in discarded]
            if not payload:
                continue
            kept = self._reader(name, to_run) or self.rebuilding.obstacle(artifact)
            size = sum(int(files[file]["size"]) for file in payload)
            yield _entry("payload", artifact, size, kept), partial(self.store.discard, artifact, payload)

    def _reader(self, name: str, to_run: Sequence[str]) -> str | None:
        """Which unit still needs the payload of this one."""
        if self.evaluation.is_idle(name, to_run):
            return None
        waiting = [reader for reader in self.evaluation.readers(name) if self.nodes[reader].artifact is None]
        return f"{waiting[0]} still needs it" if waiting else "a unit that has to run needs it"


def _entry(what: What, artifact: Artifact, size: int, kept: str | None) -> Entry:
    seconds = artifact.manifest.get("seconds")
    return Entry(what, f"{ARTIFACTS}/{artifact.name}", size, None if seconds is None else float(seconds), kept)


def _describes_any(artifact: Path, but: Path | None = None) -> bool:
    """Whether a folder other than ``but`` exists that the usage file beside an artifact may describe."""
    folders = {artifact.with_name(artifact.name + suffix) for suffix in ("", *UNPUBLISHED)} - {but}
    return any(folder is not None and folder.exists() for folder in folders)


def _size(*paths: Path) -> int:
    """Bytes of files, and of all files in folders."""
    total = 0
    for file in [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]:
        with suppress(OSError):
            if file.is_file() and not file.is_symlink():
                total += file.stat().st_size
    return total
