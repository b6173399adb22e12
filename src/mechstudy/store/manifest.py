"""An artifact's id, and the manifest that lists its content."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import UNREADABLE, UNREADABLE_FIX, not_stale
from mechstudy.core.jsonio import canonical_json, json_bytes, jsonable, read_json, write_json_atomic

SCHEMA = "mechstudy-artifact-1"
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
    """The manifest; None when it is absent, truncated or incomplete.

    Raises:
        MechstudyError: the file system failed twice, which does not mean that the manifest is damaged.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except MechstudyError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in UNREADABLE:
            raise MechstudyError(error.what, where=error.where, fix=UNREADABLE_FIX) from error.__cause__
        return None
    required = {"schema", "phase", "unit", "id", "version", "spec", "inputs", "files"}
    if not isinstance(manifest, dict) or not required <= manifest.keys() or manifest["schema"] != SCHEMA:
        return None
    return manifest


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
        raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path), fix=UNREADABLE_FIX) from error
