"""Fingerprints of the files that a study names, which make their content part of artifact ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.corpus.bundled import bundled_card
from mechstudy.corpus.config import CorpusConfig

_EDGE = 1 << 20
_WHOLE = 64 << 20


def file_fingerprint(path: Path) -> str:
    """sha256 of a file; for a file above 64 MiB, of its size and its first and last MiB."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            if size <= _WHOLE:
                return hashlib.file_digest(f, "sha256").hexdigest()
            digest = hashlib.sha256(str(size).encode() + f.read(_EDGE))
            f.seek(size - _EDGE)
            digest.update(f.read(_EDGE))
            return digest.hexdigest()
    except OSError as error:
        raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path)) from None


def model_fingerprint(folder: Path) -> str:
    """One sha256 over the config, tokenizer and weight files of a model folder."""
    return _of_all(sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")]))


def _of_all(files: Iterable[Path]) -> str:
    return hashlib.sha256("".join(f"{file.name} {file_fingerprint(file)}\n" for file in files).encode()).hexdigest()


def corpus_fingerprint(config: CorpusConfig, base: Path) -> str:
    """The fingerprint of the bundled corpus, or of a local file or folder; empty for other sources.

    A hub dataset is identified by its revision.
    """
    source = config.parsed()
    if source.kind == "bundled":
        return str(bundled_card()["sha256"])
    if source.kind in ("hf", "sampled"):
        return ""
    path = base / source.path
    if not path.exists():
        raise MechstudyError(
            f"there is no file or folder {path}",
            where="corpus.source",
            fix="a path relative to the study file's folder, or an absolute one",
        )
    return _of_all(sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
