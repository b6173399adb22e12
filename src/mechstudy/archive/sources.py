"""The user's files that a study reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mechstudy.archive.index import OURS
from mechstudy.corpus.config import FILE_KINDS
from mechstudy.study.study import Study


@dataclass(frozen=True)
class SourceFile:
    """``name`` is relative to the study file's folder where ``portable``, else absolute or outside it."""

    name: str
    path: Path
    portable: bool


def source_files(study: Study, base: Path) -> list[SourceFile]:
    """Every file (folders file by file) sorted by name, without models."""
    named = [b.file for b in study.behaviours if b.file is not None]
    if (location := corpus_location(study)) is not None:
        named.append(location)
    files: dict[str, SourceFile] = {}
    for name in named:
        path = base / Path(name).expanduser()
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in inside:
            full = name if file == path else f"{name.rstrip('/')}/{file.relative_to(path).as_posix()}"
            plain = PurePosixPath(full).as_posix()
            files[plain] = SourceFile(plain, file, _portable(plain))
    return [files[name] for name in sorted(files)]


def corpus_location(study: Study) -> str | None:
    """The file or folder that the corpus is read from; None if it is bundled, sampled or on a hub."""
    source = study.corpus.parsed()
    return source.location if source.kind in FILE_KINDS else None


def corpus_is_pinned(study: Study) -> bool:
    """Whether the corpus is the same at any time: a hub's only with a revision."""
    source = study.corpus.parsed()
    return source.kind != "hf" or source.revision is not None


def _portable(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not name.startswith(("/", "~")) and ".." not in parts and bool(parts) and parts[0] not in OURS
