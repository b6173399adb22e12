"""Fingerprints of the files that a study names, which make their content part of artifact ids.

A fingerprint reads files above 64 MiB at their edges only, as it always did, so that ids of finished runs stay. What it
does not read has a second digest, ``sha256``, of the whole files (docs/explanation/decisions/0010-whole-files.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mechstudy.behaviours.hub_files import hub_files, is_hub
from mechstudy.core.errors import MechstudyError
from mechstudy.corpus.bundled import bundled_card
from mechstudy.corpus.config import CorpusConfig, files_of_folder
from mechstudy.store.digests import file_sha256

_EDGE = 1 << 20
_WHOLE = 64 << 20
# Read where there is no tokenizer.json.
_SLOW_TOKENIZERS = ("*.model", "*.model.v3", "vocab.txt", "merges.txt", "*.tiktoken")


@dataclass(frozen=True)
class Content:
    """What identifies files: their ``fingerprint``, and the digest of what that does not read, None if it reads all."""

    fingerprint: str
    sha256: str | None = None


def file_fingerprint(path: Path) -> str:
    """sha256 of a file; for a file above 64 MiB, of its size and its first and last MiB."""
    try:
        size = path.stat().st_size
        if size <= _WHOLE:
            return file_sha256(path)
        with path.open("rb") as f:
            digest = hashlib.sha256(str(size).encode() + f.read(_EDGE))
            f.seek(size - _EDGE)
            digest.update(f.read(_EDGE))
            return digest.hexdigest()
    except OSError as error:
        raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path)) from None


def prompts_fingerprint(name: str, base: Path) -> str:
    """The sha256 of a prompts file, or of the files of a dataset (``hf:owner/name``)."""
    if not is_hub(name):
        return file_sha256(base / name)
    digest = hashlib.sha256()
    for part in hub_files(name):
        digest.update(f"{part.path.name} {part.split} {file_sha256(part.path)}\n".encode())
    return digest.hexdigest()


def model_fingerprint(folder: Path) -> str:
    """One sha256 over the config, tokenizer and weight files of a model folder."""
    return _of_all(_fingerprinted(folder))


def model_content(folder: Path, *, code: bool = False, pinned: bool = False) -> Content:
    """The identity of a model folder.

    Args:
        code: Python files of the folder are run (``trust_remote_code``).
        pinned: the source itself holds a checksum of the model.
    """
    unread = [] if pinned else _unread(folder, code)
    return Content(model_fingerprint(folder), _whole(unread, folder) if unread else None)


def model_files(folder: Path, *, code: bool = False) -> dict[str, Path]:
    """Every file that loading the model may read, by name."""
    files = {path.name: path for path in _fingerprinted(folder)}
    return files | {path.relative_to(folder).as_posix(): path for path in _unread(folder, code)}


def corpus_content(config: CorpusConfig, base: Path) -> Content:
    """The identity of the bundled corpus, or of a local file or folder; empty for other sources.

    A hub dataset is identified by its revision.
    """
    source = config.parsed()
    if source.kind == "bundled":
        return Content(str(bundled_card()["sha256"]))
    if source.kind in ("hf", "sampled"):
        return Content("")
    path = base / source.path
    files = corpus_files(config, base)
    unread = [file for file in files if _is_large(file)]
    return Content(_of_all(files), _whole(unread, path) if unread else None)


def corpus_files(config: CorpusConfig, base: Path) -> list[Path]:
    """The files of a local corpus.

    Raises:
        MechstudyError: there is no such file or folder.
    """
    source = config.parsed()
    path = base / source.path
    if not path.exists():
        raise MechstudyError(
            f"there is no file or folder {path}",
            where="corpus.source",
            fix="a path relative to the study file's folder, or an absolute one",
        )
    if path.is_dir():
        try:
            files_of_folder(source.kind, path)
        except MechstudyError as error:
            what = f"{error.what} ({error.where})"
            raise MechstudyError(what, where="corpus.source", facts=error.facts, fix=error.fix) from error
        return sorted(p for p in path.rglob("*") if p.is_file())
    if path.stat().st_size == 0:
        raise MechstudyError(f"the file is empty: {path}", where="corpus.source", fix="name a file with text in it")
    return [path]


def changed_files(folder: Path, recorded: Mapping[str, str], *, code: bool = False, complete: bool) -> list[str]:
    """Names of a model's files that are not those whose sha256 was recorded: changed, gone or new.

    Args:
        complete: every file was recorded; otherwise new files are not reported.
    """
    now = model_files(folder, code=code)
    changed = [name for name, sha256 in recorded.items() if name not in now or file_sha256(now[name]) != sha256]
    return sorted([*changed, *((name for name in now if name not in recorded) if complete else ())])


def newer_than(paths: Iterable[Path], manifest: Mapping[str, Any]) -> list[Path]:
    """The files that were written after the artifact of this manifest was begun."""
    started = datetime.fromisoformat(str(manifest["started"])).timestamp()
    return [path for path in paths if path.stat().st_mtime >= started]


def _fingerprinted(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")])


def _unread(folder: Path, code: bool) -> list[Path]:
    """Files that loading reads and the fingerprint does not, or at their edges only."""
    large = [path for path in _fingerprinted(folder) if _is_large(path)]
    patterns = () if (folder / "tokenizer.json").exists() else _SLOW_TOKENIZERS
    tokenizers = [path for pattern in patterns for path in folder.glob(pattern)]
    return sorted({*large, *tokenizers, *(folder.rglob("*.py") if code else ())})


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size > _WHOLE
    except OSError as error:
        raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path)) from None


def _whole(files: Iterable[Path], base: Path) -> str:
    """One sha256 over the whole files and their paths below ``base``."""
    lines = "".join(f"{file.relative_to(base).as_posix()} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _of_all(files: Iterable[Path]) -> str:
    return hashlib.sha256("".join(f"{file.name} {file_fingerprint(file)}\n" for file in files).encode()).hexdigest()
