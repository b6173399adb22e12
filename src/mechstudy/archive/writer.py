"""The files of a run that go into an archive."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mechstudy.archive.index import OURS, READERS, REQUIREMENTS, RESOLVED, Contents, PackedUnit
from mechstudy.behaviours.hub_files import is_hub
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import json_bytes
from mechstudy.corpus.config import FILE_KINDS
from mechstudy.monitoring.instrumentation import PROFILE
from mechstudy.monitoring.record import USAGE_SUFFIX, usage_file
from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.store.artifacts import Artifact
from mechstudy.store.manifest import MANIFEST, manifest_is_sound, sha256_of, sign
from mechstudy.store.provenance import package_index
from mechstudy.study.dag import Node
from mechstudy.study.phases.corpus import CorpusPhase
from mechstudy.study.run_folder import ARTIFACTS, STUDY, SUMMARY
from mechstudy.study.study import Study
from mechstudy.study.unit import payload_of


@dataclass(frozen=True)
class Item:
    """One file of an archive: its name, checksum and size, and its bytes or their path."""

    name: str
    sha256: str
    size: int
    path: Path | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Packing:
    """All files of an archive, sorted by name, its list of contents, and the bytes of payload left out."""

    items: list[Item]
    contents: Contents
    left_out: int


def nothing_finished(opened: OpenedStudy) -> MechstudyError:
    """The error for a run without a finished artifact."""
    return MechstudyError(
        "nothing of this study is finished", where=str(opened.folder), fix=f"mechstudy run {opened.file}"
    )


def gather(opened: OpenedStudy, *, everything: bool = False, sources: bool = True) -> Packing:
    """Selects the files: all manifests and usage files, payload to keep, and what a run elsewhere needs.

    Args:
        everything: payload of every retention, not only ``keep``, and profiles.
        sources: also the prompts and texts that the study reads.

    Raises:
        MechstudyError: nothing is finished, a manifest is damaged, or a file is outside the study's folder.
    """
    nodes = opened.evaluate().nodes
    done = {name: node.artifact for name, node in nodes.items() if node.artifact is not None}
    if not done:
        raise nothing_finished(opened)
    found = source_files(opened.study, opened.file.parent.resolve())
    read = found if sources else {}
    for name, path in read.items():
        if not _is_portable(name):
            raise MechstudyError(
                "the study reads a file that is not below its own folder, so a restored run would not find it",
                where=str(path),
                fix="--without-sources; the restored run then needs that file at that path",
            )
    corpus = opened.study.corpus.parsed()
    unsure = (corpus.kind == "hf" and corpus.revision is None) or (corpus.kind in FILE_KINDS and not sources)
    items: list[Item] = []
    units: list[PackedUnit] = []
    left_out = 0
    for name, node in nodes.items():
        phase, retention = node.unit.phase.name, node.unit.retention
        if (artifact := node.artifact) is None:
            units.append(PackedUnit(name, phase, retention))
            continue
        packed, without = _of_artifact(
            node, artifact, everything or retention == "keep" or (phase == CorpusPhase.name and unsure)
        )
        whole = len(packed) == len(artifact.manifest["files"]) + 1
        units.append(PackedUnit(name, phase, retention, artifact.id, artifact.name, whole))
        items += [*packed, *_usage(artifact)]
        left_out += without
    items += _profile(opened.folder) if everything else []
    items += [_from_file(name, path) for name, path in read.items()]
    items += _top(opened, done)
    items.sort(key=lambda item: item.name)
    contents = Contents(
        opened.study.name,
        opened.overrides,
        units,
        {item.name: {"sha256": item.sha256, "size": item.size} for item in items},
        list(read),
        _notes(opened, nodes, unpacked=bool(found) and not sources),
    )
    return Packing(items, contents, left_out)


def source_files(study: Study, base: Path) -> dict[str, Path]:
    """The user's files that a study reads, without models, by their names in the study (folders file by file)."""
    corpus = study.corpus.parsed()
    named = [b.file for b in study.behaviours if b.file is not None and not is_hub(b.file)]
    if corpus.kind in FILE_KINDS:
        named.append(corpus.location)
    files: dict[str, Path] = {}
    for name in named:
        path = base / Path(name).expanduser()
        for file in [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]:
            full = name if file == path else f"{name.rstrip('/')}/{file.relative_to(path).as_posix()}"
            files[PurePosixPath(full).as_posix()] = file
    return dict(sorted(files.items()))


def _is_portable(name: str) -> bool:
    """Whether a file is below the study's folder, where a restored run finds it."""
    parts = PurePosixPath(name).parts
    return not name.startswith(("/", "~")) and ".." not in parts and bool(parts) and parts[0] not in OURS


def _of_artifact(node: Node, artifact: Artifact, whole: bool) -> tuple[list[Item], int]:
    """The manifest and the packed files, and the bytes of the others, which the manifest lists as discarded."""
    if not manifest_is_sound(artifact.path / MANIFEST):
        raise MechstudyError("the manifest is damaged", where=str(artifact.path), fix="mechstudy verify")
    files: Mapping[str, Mapping[str, Any]] = artifact.manifest["files"]
    gone = set(artifact.manifest.get("discarded", ()))
    left_out = gone if whole else gone | set(payload_of(files, node.unit.phase.payload))
    prefix = f"{ARTIFACTS}/{artifact.name}"
    if left_out == gone:
        manifest = (artifact.path / MANIFEST).read_bytes()
    else:
        manifest = json_bytes(sign({**artifact.manifest, "discarded": sorted(left_out)}))
    items = [_from_bytes(f"{prefix}/{MANIFEST}", manifest)]
    for name, file in files.items():
        if name not in left_out:
            items.append(Item(f"{prefix}/{name}", file["sha256"], file["size"], artifact.path / name))
    return items, sum(int(files[name]["size"]) for name in left_out - gone)


def _usage(artifact: Artifact) -> list[Item]:
    """The unit's usage file, which has no checksum in the manifest."""
    file = usage_file(artifact.path)
    return [_from_file(f"{ARTIFACTS}/{artifact.name}{USAGE_SUFFIX}", file)] if _is_plain(file) else []


def _profile(run: Path) -> list[Item]:
    """Traces, tables and memory snapshots."""
    files = sorted(path for path in (run / PROFILE).rglob("*") if _is_plain(path))
    return [_from_file(path.relative_to(run).as_posix(), path) for path in files]


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _top(opened: OpenedStudy, done: Mapping[str, Artifact]) -> list[Item]:
    items = [_from_file(STUDY, opened.file), _from_bytes(REQUIREMENTS, requirements(list(done.values())).encode())]
    for name in (RESOLVED, SUMMARY, *READERS):
        if (opened.folder / name).is_file():
            items.append(_from_file(name, opened.folder / name))
    return items


def requirements(artifacts: list[Artifact]) -> str:
    """The packages of the artifact finished last, for ``pip install -r``; other versions as comments."""
    last = max(artifacts, key=lambda a: (str(a.manifest.get("finished", "")), a.name))
    made_with: dict[str, dict[str, str]] = {a.name: _packages(a) for a in artifacts}
    newest = made_with[last.name]
    python = (last.manifest.get("provenance") or {}).get("python")
    lines = [f"# Python {python}; packages of {last.unit}"]
    if (index := package_index(newest)) is not None:
        lines.append(f"--extra-index-url {index}")
    lines += [f"{name}=={version}" for name, version in sorted(newest.items(), key=lambda item: item[0].lower())]
    for name, packages in sorted(made_with.items()):
        other = {p: v for p, v in packages.items() if newest.get(p) != v}
        if other:
            lines.append(f"# {name}: " + ", ".join(f"{p}=={v}" for p, v in sorted(other.items())))
    return "\n".join(lines) + "\n"


def _packages(artifact: Artifact) -> dict[str, str]:
    packages = (artifact.manifest.get("provenance") or {}).get("packages") or {}
    return {str(name): str(version) for name, version in packages.items()}


def _notes(opened: OpenedStudy, nodes: Mapping[str, Node], *, unpacked: bool) -> list[str]:
    notes = []
    if opened.study.model.source.startswith(("path:", "gguf:")):
        notes.append(f"the model itself is not packed: it is expected at {_short(opened.study.model.source)}")
    if unpacked:
        notes.append("the files that the study reads are not packed")
    missing = [name for name, node in nodes.items() if node.artifact is None and node.stopped is None]
    if missing:
        notes.append(f"unfinished when packed: {', '.join(missing)}")
    return notes


def _short(source: str) -> str:
    """A model's source without the absolute path of its folder."""
    kind, _, place = source.partition(":")
    return source if not place.startswith(("/", "~")) else f"{kind}:.../{Path(place).name} (an absolute path)"


def _from_file(name: str, path: Path) -> Item:
    try:
        return Item(name, sha256_of(path), path.stat().st_size, path)
    except OSError as error:
        raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _from_bytes(name: str, data: bytes) -> Item:
    return Item(name, hashlib.sha256(data).hexdigest(), len(data), data=data)
