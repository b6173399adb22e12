"""The artifact store: folders that exist only when complete, named by what they were made from.

Layout: ``<root>/<phase>/<unit-slug>-<id[:12]>/`` with ``manifest.json`` and files. Work in progress is in a
sibling ``....partial`` folder that is renamed when everything in it is on disk.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import is_full_disk
from mechstudy.store.artifact_writer import PARTIAL, REPLACED, SCRATCH, ArtifactWriter
from mechstudy.store.manifest import MANIFEST, Artifact, Problem, artifact_id, load, read_manifest, slug, write_manifest

__all__ = [
    "DAMAGED", "SCRATCH", "UNPUBLISHED", "Artifact", "ArtifactStore", "ArtifactWriter", "Problem", "artifact_id",
]  # fmt: skip

DAMAGED = ".damaged"  # set aside by `mechstudy verify`
_REMOVED = ".removed"  # being deleted
UNPUBLISHED = (PARTIAL, REPLACED, DAMAGED, _REMOVED)


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
        partial = folder.with_name(folder.name + PARTIAL)
        return partial if partial.is_dir() else None

    def find(self, phase: str, unit: str, id: str) -> Artifact | None:
        """The complete artifact; None where it is absent or unfinished, or a file is missing or truncated."""
        return load(self.folder(phase, unit, id), id)

    def others(self, phase: str, unit: str, id: str) -> list[Artifact]:
        """Complete artifacts of this unit with other ids: of another study, or of another version of this one."""
        artifacts = (load(folder) for folder in (self.root / slug(phase)).glob(f"{slug(unit)}-*"))
        return [a for a in artifacts if a is not None and a.manifest.get("unit") == unit and a.id != id]

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
        """A writer for this artifact. It reopens unfinished work, so that the unit can resume.

        With ``helps`` another process has it open and publishes it; this one only adds files.
        """
        ids = {label: artifact.id for label, artifact in inputs.items()}
        assert id == artifact_id(phase, version, spec, ids), "the id does not follow from these inputs"
        folder = self.folder(phase, unit, id)
        return ArtifactWriter(folder, phase, unit, id, version=version, spec=spec, inputs=inputs, helps=helps)

    def all(self) -> list[Artifact]:
        """Every complete artifact, sorted by phase and folder."""
        return [artifact for folder in self._folders() if (artifact := load(folder)) is not None]

    def verify(self) -> list[Problem]:
        """Every problem of every published artifact, unreadable manifests included."""
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
        names = artifact.manifest["files"]
        matching = {name for pattern in patterns for name in names if fnmatch.fnmatchcase(name, pattern)}
        discarded = sorted(matching | set(artifact.manifest.get("discarded", ())))
        if not discarded:
            return 0
        artifact.manifest["discarded"] = discarded
        recorded = True  # before deleting: a crash leaves only spare files; afterwards only where the disk is full
        try:
            write_manifest(artifact.path, artifact.manifest)
        except MechstudyError as error:
            if error.__cause__ is None or not is_full_disk(error.__cause__):
                raise
            recorded = False
        freed = 0
        for name in discarded:
            path = artifact.path / name
            if path.exists():
                freed += path.stat().st_size
                path.unlink()
        if not recorded:
            write_manifest(artifact.path, artifact.manifest)
        return freed

    def remove(self, artifact: Artifact) -> None:
        """Deletes an artifact. One that is half deleted is neither found nor counted as damaged."""
        removed = artifact.path.with_name(artifact.path.name + _REMOVED)
        shutil.rmtree(removed, ignore_errors=True)
        artifact.path.rename(removed)
        shutil.rmtree(removed)

    def _folders(self) -> list[Path]:
        """Folders of published artifacts, complete or damaged."""
        return [path for path in sorted(self.root.glob("*/*")) if path.is_dir() and path.suffix not in UNPUBLISHED]
