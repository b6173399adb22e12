"""What of a run goes into an archive: all manifests, payload of what is kept, what each unit used of its machine, and
what a run elsewhere needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.archive.index import REQUIREMENTS, RESOLVED, Contents, PackedUnit
from mechstudy.archive.sources import SourceFile, corpus_is_pinned, corpus_location, source_files
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import json_bytes
from mechstudy.monitoring.instrumentation import PROFILE
from mechstudy.monitoring.record import SUFFIX as USAGE
from mechstudy.monitoring.record import usage_file
from mechstudy.runner.study_run import OpenedStudy
from mechstudy.store.artifacts import Artifact
from mechstudy.store.manifest import MANIFEST, manifest_is_sound, sha256_of, sign
from mechstudy.store.provenance import package_index
from mechstudy.study.dag import Node
from mechstudy.study.retention import payload_of
from mechstudy.study.run_folder import ARTIFACTS, STUDY, SUMMARY


@dataclass(frozen=True)
class Item:
    """One file of an archive: its name there, and its bytes or where they are, with the checksum they must have."""

    name: str
    sha256: str
    size: int
    path: Path | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Packing:
    """All that goes into an archive, sorted by name, and the list it begins with."""

    items: list[Item]
    contents: Contents


def gather(opened: OpenedStudy, *, everything: bool = False, sources: bool = True) -> Packing:
    """Reads manifests and the study's own files; payload is left to whoever packs it.

    Args:
        everything: payload of every class, not of ``keep`` alone, and traces and snapshots of memory.
        sources: the prompts and texts that the study reads, too.

    Raises:
        MechstudyError: nothing is finished, a manifest is damaged, or a file lies where no other machine has it.
    """
    nodes = opened.run().evaluate().nodes
    done = {name: node.artifact for name, node in nodes.items() if node.artifact is not None}
    if not done:
        raise MechstudyError(
            "nothing of this study is finished", where=str(opened.folder), fix=f"mechstudy run {opened.file}"
        )
    base = opened.file.parent.resolve()
    given = source_files(opened.study, base) if sources else []
    _refuse_unportable(given)
    unsure = not corpus_is_pinned(opened.study) or (corpus_location(opened.study) is not None and not sources)
    items: list[Item] = []
    units: list[PackedUnit] = []
    for name, node in nodes.items():
        whole = everything or node.unit.retention == "keep" or (node.unit.phase == "corpus" and unsure)
        if node.artifact is None:
            units.append(PackedUnit(name, node.unit.phase, node.unit.retention))
            continue
        packed = _of_artifact(node, node.artifact, whole)
        units.append(_unit(node, node.artifact, packed))
        items.extend(packed)
        items.extend(_usage(node.artifact))
    items += _profile(opened.folder) if everything else []
    items += [_from_file(file.name, file.path) for file in given]
    items += _beside(opened, done)
    items.sort(key=lambda item: item.name)
    contents = Contents(
        opened.study.name,
        opened.overrides,
        units,
        {item.name: {"sha256": item.sha256, "size": item.size} for item in items},
        [file.name for file in given],
        _notes(opened, nodes, sources),
    )
    return Packing(items, contents)


def _refuse_unportable(given: list[SourceFile]) -> None:
    for file in given:
        if not file.portable:
            raise MechstudyError(
                "the study reads a file that is not below its own folder, so no other place would find it",
                where=str(file.path),
                fix="--without-sources; whoever restores it then needs that file at that path",
            )


def _of_artifact(node: Node, artifact: Artifact, whole: bool) -> list[Item]:
    """The manifest, and the files that are packed; the others are in it as discarded."""
    if not manifest_is_sound(artifact.path / MANIFEST):
        raise MechstudyError("the manifest is damaged", where=str(artifact.path), fix="mechstudy verify")
    files: Mapping[str, Mapping[str, Any]] = artifact.manifest["files"]
    gone = set(artifact.manifest.get("discarded", ()))
    left_out = gone if whole else gone | set(payload_of(files, node.unit.discard_patterns))
    prefix = f"{ARTIFACTS}/{artifact.name}"
    if left_out == gone:
        manifest = (artifact.path / MANIFEST).read_bytes()
    else:
        manifest = json_bytes(sign({**artifact.manifest, "discarded": sorted(left_out)}))
    kept = [name for name in files if name not in left_out]
    return [
        _from_bytes(f"{prefix}/{MANIFEST}", manifest),
        *(Item(f"{prefix}/{name}", files[name]["sha256"], files[name]["size"], artifact.path / name) for name in kept),
    ]


def _usage(artifact: Artifact) -> list[Item]:
    """What the unit used, as it lies beside the artifact. It has no checksum there, so it is read now."""
    file = usage_file(artifact.path)
    return [_from_file(f"{ARTIFACTS}/{artifact.name}{USAGE}", file)] if _is_plain(file) else []


def _profile(run: Path) -> list[Item]:
    """Traces, tables and snapshots that were asked for."""
    files = sorted(path for path in (run / PROFILE).rglob("*") if _is_plain(path))
    return [_from_file(path.relative_to(run).as_posix(), path) for path in files]


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _unit(node: Node, artifact: Artifact, packed: list[Item]) -> PackedUnit:
    whole = len(packed) == len(artifact.manifest["files"]) + 1
    return PackedUnit(node.unit.name, node.unit.phase, node.unit.retention, artifact.id, artifact.name, whole)


def _beside(opened: OpenedStudy, done: Mapping[str, Artifact]) -> list[Item]:
    items = [_from_file(STUDY, opened.file), _from_bytes(REQUIREMENTS, requirements(list(done.values())).encode())]
    for name in (RESOLVED, SUMMARY):
        if (opened.folder / name).is_file():
            items.append(_from_file(name, opened.folder / name))
    return items


def requirements(artifacts: list[Artifact]) -> str:
    """The packages with which the last finished of these was made, for ``pip install -r``; others as comments."""
    last = max(artifacts, key=lambda a: (str(a.manifest.get("finished", "")), a.name))
    made_with: dict[str, dict[str, str]] = {a.name: _packages(a) for a in artifacts}
    newest = made_with[last.name]
    python = (last.manifest.get("provenance") or {}).get("python")
    lines = [f"# Python {python}; what {last.unit} was made with"]
    if (index := package_index(newest)) is not None:
        lines.append(f"--extra-index-url {index}")
    lines += [f"{name}=={version}" for name, version in sorted(newest.items(), key=lambda item: item[0].lower())]
    for name, packages in sorted(made_with.items()):
        other = {p: v for p, v in packages.items() if newest.get(p) != v}
        if other:
            lines.append(f"# {name}: " + ", ".join(f"{p}=={v}" for p, v in sorted(other.items())))
    return "\n".join(lines) + "\n"


def _packages(artifact: Artifact) -> dict[str, str]:
    found = (artifact.manifest.get("provenance") or {}).get("packages") or {}
    return {str(name): str(version) for name, version in found.items()}


def _notes(opened: OpenedStudy, nodes: Mapping[str, Node], sources: bool) -> list[str]:
    notes = []
    if opened.study.model.source.startswith(("path:", "gguf:")):
        notes.append(f"the model itself is not packed: it is expected at {_short(opened.study.model.source)}")
    if not sources and source_files(opened.study, opened.file.parent.resolve()):
        notes.append("the files that the study reads are not packed")
    missing = [name for name, node in nodes.items() if node.artifact is None and node.stopped is None]
    if missing:
        notes.append(f"not finished when it was packed: {', '.join(missing)}")
    return notes


def _short(source: str) -> str:
    """A model's source without the folders it lies in."""
    kind, _, place = source.partition(":")
    return source if not place.startswith(("/", "~")) else f"{kind}:.../{Path(place).name} (an absolute path)"


def _from_file(name: str, path: Path) -> Item:
    try:
        return Item(name, sha256_of(path), path.stat().st_size, path)
    except OSError as error:
        raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _from_bytes(name: str, data: bytes) -> Item:
    return Item(name, hashlib.sha256(data).hexdigest(), len(data), data=data)
