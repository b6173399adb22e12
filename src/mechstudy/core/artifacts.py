"""The artifact store: a folder that exists only when it is complete, named by what it was made from.

Layout: ``<root>/<phase>/<unit-slug>-<id[:12]>/`` with ``manifest.json`` and files. Work in progress is in a
sibling ``....partial`` folder that is renamed when everything in it is on disk.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mechstudy.core.disk import (
    UNREADABLE,
    UNREADABLE_FIX,
    atomic_path,
    disk_errors,
    fsync_file,
    fsync_folder,
    is_full_disk,
    not_stale,
    stale_temporaries,
)
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import jsonable, read_json, write_json_atomic
from mechstudy.core.manifest import (
    MANIFEST,
    SCHEMA,
    artifact_id,
    hashable_spec,
    manifest_is_sound,
    read_manifest,
    sha256_of,
    slug,
    write_manifest,
)
from mechstudy.core.memory import peak_gpu_bytes, peak_rss_bytes, reset_peak_gpu, reset_peak_rss
from mechstudy.core.seeds import drawn, forget_drawn, seeds_in
from mechstudy.core.sessions import open_session

__all__ = ["Artifact", "ArtifactStore", "ArtifactWriter", "Problem", "artifact_id", "hashable_spec", "slug"]

SCRATCH = ".scratch"
_PARTIAL = ".partial"
_REPLACED = ".replaced"
DAMAGED = ".damaged"  # set aside by `mechstudy verify`
_REMOVED = ".removed"  # being deleted
UNPUBLISHED = (_PARTIAL, _REPLACED, DAMAGED, _REMOVED)


@dataclass(frozen=True)
class Problem:
    """What `verify` found wrong: artifact as ``phase/folder``, file inside it, and what is the matter."""

    artifact: str
    file: str
    what: Literal["missing", "size", "checksum", "manifest"]

    def __str__(self) -> str:
        return f"{self.artifact}/{self.file}: {self.what}"


class Artifact:
    """A complete artifact on disk: ``path``, ``id``, ``phase``, ``unit`` and the ``manifest`` as read."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.id: str = manifest["id"]
        self.phase: str = manifest["phase"]
        self.unit: str = manifest["unit"]

    def __repr__(self) -> str:
        return f"Artifact({self.name})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and (self.path, self.id) == (other.path, other.id)

    def __hash__(self) -> int:
        return hash((self.path, self.id))

    @property
    def name(self) -> str:
        """``phase/folder``, as problems and manifests name it."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def is_discarded(self) -> bool:
        """True once payload files were deleted to save space."""
        return bool(self.manifest.get("discarded"))

    def file(self, name: str) -> Path:
        """The path of a file of this artifact.

        Raises:
            MechstudyError: it has no such file, or it was discarded.
        """
        path = self.path / name
        if path.exists():
            return path
        if name in self.manifest.get("discarded", ()):
            raise MechstudyError(
                f"{name} was discarded to save space",
                where=str(self.path),
                fix="remove the artifact folder and run the study again: the unit is then computed anew",
            )
        names = ", ".join(sorted(self.manifest["files"])) or "no files"
        raise MechstudyError(f"has no file {name}", where=str(self.path), facts={"files": names})

    def folder(self, name: str) -> Path:
        """The path of a sub-folder; raises like `file`."""
        path = self.path / name
        if not path.is_dir():
            raise MechstudyError(f"has no folder {name}", where=str(self.path))
        return path

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; MechstudyError when it is absent or not whole."""
        return read_json(self.file(name))

    def verify(self) -> list[Problem]:
        """Reads every byte and compares with the manifest, and the manifest with its own checksum and id."""
        problems = []
        if not manifest_is_sound(self.path / MANIFEST):
            problems.append(Problem(self.name, MANIFEST, "manifest"))
        discarded = set(self.manifest.get("discarded", ()))
        for file, expected in sorted(self.manifest["files"].items()):
            path = self.path / file
            if file in discarded:
                continue
            if not path.is_file():
                problems.append(Problem(self.name, file, "missing"))
            elif path.stat().st_size != expected["size"]:
                problems.append(Problem(self.name, file, "size"))
            elif sha256_of(path) != expected["sha256"]:
                problems.append(Problem(self.name, file, "checksum"))
        return problems


class ArtifactStore:
    """All artifacts under one root folder. Safe to read while others write."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def folder(self, phase: str, unit: str, id: str) -> Path:
        """Where the artifact is, once it is complete."""
        return self.root / slug(phase) / f"{slug(unit)}-{id[:12]}"

    def partial(self, phase: str, unit: str, id: str) -> Path | None:
        """The folder of begun but unfinished work, if there is one."""
        folder = self.folder(phase, unit, id)
        partial = folder.with_name(folder.name + _PARTIAL)
        return partial if partial.is_dir() else None

    def find(self, phase: str, unit: str, id: str) -> Artifact | None:
        """The complete artifact, or None: absent, unfinished, or a file of it is missing or cut short."""
        artifact = _load(self.folder(phase, unit, id))
        return artifact if artifact is not None and artifact.id == id else None

    def others(self, phase: str, unit: str, id: str) -> list[Artifact]:
        """Complete artifacts of this unit with other ids: made from another study, or another version of one."""
        found = (_load(folder) for folder in (self.root / slug(phase)).glob(f"{slug(unit)}-*"))
        return [a for a in found if a is not None and a.manifest.get("unit") == unit and a.id != id]

    def writer(
        self,
        phase: str,
        unit: str,
        id: str,
        *,
        version: int,
        spec: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        helps: bool = False,
    ) -> ArtifactWriter:
        """A writer for this artifact; reopens unfinished work, so that what it holds can be resumed.

        With ``helps`` another process has it open and publishes it; this one only adds files.
        """
        ids = {label: artifact.id for label, artifact in inputs.items()}
        assert id == artifact_id(phase, version, spec, ids), "the id is not of these inputs"
        return ArtifactWriter(self, phase, unit, id, version=version, spec=spec, inputs=inputs, helps=helps)

    def all(self) -> list[Artifact]:
        """Every complete artifact, sorted by phase and folder."""
        return [artifact for folder in self._folders() if (artifact := _load(folder)) is not None]

    def verify(self) -> list[Problem]:
        """Every problem of every published artifact, also of those whose manifest cannot be read."""
        problems: list[Problem] = []
        for folder in self._folders():
            manifest = read_manifest(folder)
            if manifest is None:
                problems.append(Problem(f"{folder.parent.name}/{folder.name}", MANIFEST, "manifest"))
            else:
                problems.extend(Artifact(folder, manifest).verify())
        return problems

    def discard(self, artifact: Artifact, patterns: Iterable[str]) -> int:
        """Deletes the payload files that match (``*`` also crosses folders); returns the bytes freed.

        The manifest stays, with their names under ``discarded``; `find` still returns the artifact.
        """
        wanted = tuple(patterns)
        matching = {
            name for name in artifact.manifest["files"] if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
        }
        discarded = sorted(matching | set(artifact.manifest.get("discarded", ())))
        if not discarded:
            return 0
        artifact.manifest["discarded"] = discarded
        told = _has_room(lambda: write_manifest(artifact.path, artifact.manifest))
        freed = 0  # after the manifest: a crash leaves only spare files; before it only where the disk is full
        for name in discarded:
            path = artifact.path / name
            if path.exists():
                freed += path.stat().st_size
                path.unlink()
        if not told:
            write_manifest(artifact.path, artifact.manifest)
        return freed

    def remove(self, artifact: Artifact) -> None:
        """Deletes an artifact whole; one that is half deleted is no longer found, and is no damaged one either."""
        going = artifact.path.with_name(artifact.path.name + _REMOVED)
        shutil.rmtree(going, ignore_errors=True)
        artifact.path.rename(going)
        shutil.rmtree(going)

    def _folders(self) -> list[Path]:
        """Folders of published artifacts, complete or damaged."""
        found = [path for path in sorted(self.root.glob("*/*")) if path.is_dir()]
        return [path for path in found if path.suffix not in UNPUBLISHED]


class ArtifactWriter:
    """Writes one artifact into its partial folder and publishes it. Made by `ArtifactStore.writer`.

    ``path`` is the partial folder: write files there, in any sub-folders. It survives a crash and is
    reopened by the next writer of the same id.
    """

    def __init__(
        self,
        store: ArtifactStore,
        phase: str,
        unit: str,
        id: str,
        *,
        version: int,
        spec: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        helps: bool = False,
    ) -> None:
        self.store = store
        self.phase = phase
        self.unit = unit
        self.id = id
        self.version = version
        self.spec = hashable_spec(spec)
        self.inputs = dict(inputs)
        self.final = store.folder(phase, unit, id)
        self.path = self.final.with_name(self.final.name + _PARTIAL)
        self.helps = helps
        if helps:
            return
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / MANIFEST).unlink(missing_ok=True)  # left when a publish was killed before its rename
            self._began = time.monotonic()
            self._sessions = open_session(self.scratch)
            forget_drawn()
        reset_peak_rss()
        reset_peak_gpu()

    @property
    def resumes(self) -> bool:
        """Whether another process began this artifact, and this one goes on."""
        return len(self._sessions) > 1

    @property
    def scratch(self) -> Path:
        """A folder for checkpoints, kept over crashes and deleted before the artifact is published."""
        folder = self.path / SCRATCH
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def file(self, name: str) -> Path:
        """The path for a file of the artifact; its parent folders are made."""
        parts = PurePosixPath(name).parts
        assert parts and not name.startswith("/") and ".." not in parts, f"not inside the artifact: {name}"
        assert parts[0] not in (MANIFEST, SCRATCH), f"{name} is the store's own"
        path = self.path / name
        with disk_errors(self.path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, obj: Any, *, indent: int | None = 2) -> Path:
        """Writes JSON (NaN as null). ``indent=None`` for large files: one line, ten times faster."""
        path = self.file(name)
        write_json_atomic(path, obj, indent=indent)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Writes UTF-8 text."""
        path = self.file(name)
        with atomic_path(path) as temporary:
            temporary.write_bytes(text.encode())
        return path

    def publish(self, runtime_info: Mapping[str, Any]) -> Artifact:
        """Puts everything on disk, writes the manifest, and renames the folder to its final name.

        When another process has published the same artifact meanwhile, that one is kept and returned.

        Raises:
            MechstudyError: the disk is full; the partial folder stays and can be reopened.
        """
        from mechstudy.core.provenance import provenance

        assert not self.helps, "whoever opened the artifact first publishes it"
        with disk_errors(self.path):
            files = self._settle_files()
            finished = datetime.now(UTC)
            manifest: dict[str, Any] = {
                "schema": SCHEMA,
                "phase": self.phase,
                "unit": self.unit,
                "id": self.id,
                "version": self.version,
                "spec": self.spec,
                "inputs": {
                    label: {"id": artifact.id, "path": os.path.relpath(artifact.path, self.store.root)}
                    for label, artifact in sorted(self.inputs.items())
                },
                "runtime": jsonable(runtime_info),
                "provenance": provenance(),
                "files": files,
                "seeds": {"spec": seeds_in(self.spec), "drawn": drawn()},
                "started": self._sessions[0]["started"],
                "sessions": len(self._sessions),
                "processes": self._sessions,
                "finished": finished.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - self._began, 3),
                "peak_rss_bytes": peak_rss_bytes(),
            }
            if (on_gpu := peak_gpu_bytes()) is not None:
                manifest["peak_gpu_bytes"] = on_gpu
            write_manifest(self.path, manifest)
            shutil.rmtree(self.path / SCRATCH, ignore_errors=True)
            fsync_folder(self.path)
            return self._rename()

    def _settle_files(self) -> dict[str, dict[str, Any]]:
        """fsyncs every file and folder; returns name -> sha256 and size, sorted by name."""
        files: dict[str, dict[str, Any]] = {}
        for folder in _folders_below(self.path):
            for stale in stale_temporaries(folder):
                stale.unlink(missing_ok=True)
            for path in folder.iterdir():
                assert not path.is_symlink(), f"an artifact holds files, not links: {path}"
                if path.is_file() and path != self.path / MANIFEST:
                    fsync_file(path)
                    name = path.relative_to(self.path).as_posix()
                    files[name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
            fsync_folder(folder)
        return dict(sorted(files.items()))

    def _rename(self) -> Artifact:
        """Partial -> final. A whole artifact already there wins; a discarded or damaged one is replaced."""
        present = self.store.find(self.phase, self.unit, self.id)
        if present is not None and not present.is_discarded:
            shutil.rmtree(self.path)
            return present
        replaced = self.final.with_name(self.final.name + _REPLACED)
        shutil.rmtree(replaced, ignore_errors=True)
        if self.final.exists():
            self.final.rename(replaced)
        self.path.rename(self.final)
        fsync_folder(self.final.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        artifact = self.store.find(self.phase, self.unit, self.id)
        assert artifact is not None, f"{self.final} was published and is not found"
        return artifact


def _folders_below(root: Path) -> Iterator[Path]:
    """The folder and its sub-folders, without the scratch folder."""
    yield root
    for path in sorted(root.rglob("*")):
        if path.is_dir() and path.relative_to(root).parts[0] != SCRATCH:
            yield path


def _load(folder: Path) -> Artifact | None:
    """The artifact in a folder when its manifest is readable and every file has its size."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    discarded = set(manifest.get("discarded", ()))
    for name, expected in manifest["files"].items():
        if name in discarded:
            continue
        try:
            if not_stale((folder / name).stat).st_size != expected["size"]:
                return None
        except OSError as error:
            if error.errno in UNREADABLE:
                raise MechstudyError(
                    f"cannot be read: {error.strerror}", where=str(folder / name), fix=UNREADABLE_FIX
                ) from error
            return None
    return Artifact(folder, manifest)


def _has_room(write: Callable[[], None]) -> bool:
    """Writes; False where the disk is too full for it."""
    try:
        write()
    except MechstudyError as error:
        if error.__cause__ is None or not is_full_disk(error.__cause__):
            raise
        return False
    return True
