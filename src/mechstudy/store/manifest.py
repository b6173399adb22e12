"""One artifact on disk: its id, the manifest that lists its files, and their verification."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import UNREADABLE, UNREADABLE_FIX, not_stale
from mechstudy.core.jsonio import canonical_json, json_bytes, jsonable, read_json, write_json_atomic

_Schema = Literal["mechstudy-artifact-1"]
SCHEMA: _Schema = "mechstudy-artifact-1"
MANIFEST = "manifest.json"


def artifact_id(phase: str, version: int, spec: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The sha256 (hex) of what determines an artifact: phase, version, spec, and the ids of its inputs by label."""
    identity = {"phase": phase, "version": version, "spec": hashable_spec(spec), "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def hashable_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as the manifest keeps it: JSON in which infinities and NaN differ from null."""

    def keep(value: Any) -> Any:
        if hasattr(value, "canonical"):
            value = value.canonical()
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(float(value))}
        if isinstance(value, Mapping):
            return {key: keep(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [keep(item) for item in value]
        return value

    plain: dict[str, Any] = jsonable(keep(spec))
    return plain


def slug(unit: str) -> str:
    """A folder name for a unit: ``train[layer=12]`` -> ``train-layer-12``."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", unit).strip("-.")[:80] or "unit"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; None when it is absent, truncated, or not what `_Manifest` says.

    Raises:
        MechstudyError: the file system failed twice, which does not mean that the manifest is damaged.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except MechstudyError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in UNREADABLE:
            raise MechstudyError(error.what, where=error.where, fix=UNREADABLE_FIX) from error.__cause__
        return None
    try:
        _MANIFEST.validate_python(manifest)
    except ValidationError:
        return None
    return dict(manifest)


class _File(TypedDict):
    size: NonNegativeInt
    sha256: str


class _Input(TypedDict):
    id: str
    path: str


class _Manifest(TypedDict):
    """What every reader of a manifest may rely on: a damaged one that parses as JSON is not taken for a manifest."""

    schema: _Schema
    phase: str
    unit: str
    id: str
    version: int
    spec: dict[str, Any]
    inputs: dict[str, _Input]
    files: dict[str, _File]
    started: str
    finished: str
    seconds: float
    peak_rss_bytes: int | None
    peak_gpu_bytes: NotRequired[int]
    discarded: NotRequired[list[str]]
    processes: NotRequired[list[dict[str, Any]]]  # not in manifests of earlier versions
    provenance: NotRequired[dict[str, Any]]


_MANIFEST = TypeAdapter(_Manifest)  # fields of other versions are ignored


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest with its own checksum, so that `manifest_is_sound` sees a changed byte in it too."""
    sign(manifest)
    write_json_atomic(folder / MANIFEST, manifest)


def sign(manifest: dict[str, Any]) -> dict[str, Any]:
    """Adds the checksum of everything else to the manifest, and returns the manifest."""
    manifest.pop("manifest_sha256", None)
    manifest["manifest_sha256"] = hashlib.sha256(json_bytes(manifest)).hexdigest()
    return manifest


def manifest_is_sound(path: Path) -> bool:
    """True when the bytes are as written and the id follows from phase, spec and inputs."""
    manifest = read_manifest(path.parent)
    if manifest is None or json_bytes(manifest) != path.read_bytes():
        return False
    unsigned = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    if manifest.get("manifest_sha256") != hashlib.sha256(json_bytes(unsigned)).hexdigest():
        return False
    ids = {label: entry["id"] for label, entry in manifest["inputs"].items()}
    return bool(manifest["id"] == artifact_id(manifest["phase"], manifest["version"], manifest["spec"], ids))


def sha256_of(path: Path) -> str:
    """The sha256 (hex) of a file's bytes.

    Raises:
        MechstudyError: the file system failed twice.
    """

    def read() -> str:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    try:
        return not_stale(read)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> MechstudyError:
    return MechstudyError(f"cannot be read: {error.strerror}", where=str(path), fix=UNREADABLE_FIX)


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
                raise _unreadable(folder / name, error) from error
            return None
    return Artifact(folder, manifest)
