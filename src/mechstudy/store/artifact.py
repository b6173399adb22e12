"""One complete artifact on disk: its files, and their verification against the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import UNREADABLE, UNREADABLE_FIX, not_stale
from mechstudy.core.jsonio import read_json
from mechstudy.store.manifest import MANIFEST, manifest_is_sound, read_manifest, sha256_of


@dataclass(frozen=True)
class Problem:
    """A fault that `verify` found: the artifact as ``phase/folder``, the file inside it, and the kind of fault."""

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
                fix="remove the artifact folder and run the study again: the unit is then computed again",
            )
        names = ", ".join(sorted(self.manifest["files"])) or "no files"
        raise MechstudyError(f"has no file {name}", where=str(self.path), facts={"files": names})

    def folder(self, name: str) -> Path:
        """The path of a sub-folder.

        Raises:
            MechstudyError: it has no such folder.
        """
        path = self.path / name
        if not path.is_dir():
            raise MechstudyError(f"has no folder {name}", where=str(self.path))
        return path

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; MechstudyError when it is absent or truncated."""
        return read_json(self.file(name))

    def verify(self) -> list[Problem]:
        """Every difference between the files and the manifest, and between the manifest and its checksum and id.

        Reads every byte.
        """
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


def load(folder: Path, id: str | None = None) -> Artifact | None:
    """The artifact in a folder, if its manifest is readable, every file has its size and it has this id.

    Raises:
        MechstudyError: the file system failed, which says nothing about the artifact.
    """
    manifest = read_manifest(folder)
    if manifest is None or id not in (None, manifest["id"]):
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
