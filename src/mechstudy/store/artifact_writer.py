"""The writer of an artifact: fills a partial folder that survives a crash, and renames it when all is on disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from mechstudy.core.files import atomic_path, disk_errors, fsync_file, fsync_folder, stale_temporaries
from mechstudy.core.jsonio import jsonable, write_json_atomic
from mechstudy.core.seeds import drawn, forget_drawn, seeds_in
from mechstudy.machine.memory import peak_gpu_bytes, peak_rss_bytes, reset_peak_gpu, reset_peak_rss
from mechstudy.store.manifest import MANIFEST, SCHEMA, Artifact, hashable_spec, load, sha256_of, write_manifest
from mechstudy.store.provenance import current_provenance, open_session

SCRATCH = ".scratch"
PARTIAL = ".partial"
REPLACED = ".replaced"


@dataclass(eq=False)
class ArtifactWriter:
    """Writes one artifact into its partial folder and publishes it. Created by `ArtifactStore.writer`.

    ``final`` is the folder of the finished artifact. ``path`` is the partial folder: write files there, in any
    sub-folders. It survives a crash and is reopened by the next writer of the same id.
    """

    final: Path
    phase: str
    unit: str
    id: str
    version: int
    spec: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    helps: bool = False

    def __post_init__(self) -> None:
        self.spec = hashable_spec(self.spec)
        self.inputs = dict(self.inputs)
        self.path = self.final.with_name(self.final.name + PARTIAL)
        if self.helps:
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
    def root(self) -> Path:
        """The root folder of the store."""
        return self.final.parent.parent

    @property
    def resumes(self) -> bool:
        """Whether an earlier process began this artifact, and this one continues it."""
        return len(self._sessions) > 1

    @property
    def scratch(self) -> Path:
        """A folder for checkpoints: survives crashes, deleted before the artifact is published."""
        folder = self.path / SCRATCH
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def file(self, name: str) -> Path:
        """The path for a file of the artifact; creates its parent folders."""
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

        If another process has published the same artifact in the meantime, that one is kept and returned.

        Raises:
            MechstudyError: the disk is full; the partial folder stays and can be reopened.
        """
        assert not self.helps, "the process that opened the artifact first publishes it"
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
                    label: {"id": artifact.id, "path": os.path.relpath(artifact.path, self.root)}
                    for label, artifact in sorted(self.inputs.items())
                },
                "runtime": jsonable(runtime_info),
                "provenance": current_provenance(),
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
        """Fsyncs every file and folder; returns name -> sha256 and size, sorted by name."""
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
        """Renames partial to final. A complete artifact already there stays; a discarded or damaged one is replaced."""
        present = load(self.final, self.id)
        if present is not None and not present.is_discarded:
            shutil.rmtree(self.path)
            return present
        put_in_place(self.path, self.final)
        artifact = load(self.final, self.id)
        assert artifact is not None, f"{self.final} was published and is not found"
        return artifact


def put_in_place(folder: Path, place: Path) -> None:
    """Renames a complete artifact's folder to its place; one that is there already is replaced."""
    replaced = place.with_name(place.name + REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)
    if place.exists():
        place.rename(replaced)
    folder.rename(place)
    fsync_folder(place.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _folders_below(root: Path) -> Iterator[Path]:
    """The folder and its sub-folders, without the scratch folder."""
    yield root
    for path in sorted(root.rglob("*")):
        if path.is_dir() and path.relative_to(root).parts[0] != SCRATCH:
            yield path
