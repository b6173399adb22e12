"""The tokenizer's files in a model folder, checked without loading them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.models.readable import check_readable

PATTERNS = (
    "tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "tekken.json", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "*.tiktoken",
)  # fmt: skip
_MERGES = "merges.txt"
_FROM_BASE = "copy tokenizer.json and tokenizer_config.json from the base model"
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


def check_tokenizer_files(folder: Path) -> None:
    """Checks that a folder holds a tokenizer whose files are there and whole.

    tokenizer.json is one by itself, and then nothing else is read; without it one of the others has to be whole.

    Raises:
        MechstudyError: it holds none, or a broken one; the message names the file.
    """
    found = [folder / name for name in tokenizer_files(folder)]
    if not found and (folder / _MERGES).exists():
        raise _broken(folder, f"vocab.json is missing, without which {_MERGES} is no tokenizer")
    if not found:
        raise MechstudyError(
            "the folder holds no tokenizer (tokenizer.json)",
            where=str(folder),
            facts={"looked for": " ".join(PATTERNS)},
            fix=_FROM_BASE,
        )
    for path in found:
        check_readable(path)
    whole = [path for path in found if path.name == "tokenizer.json"] or found
    defects = [_defect(path) for path in whole]
    if all(defects):
        raise _broken(folder, str(defects[0]))


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the files of which each may be a tokenizer; dangling links too, which a glob leaves out."""
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if any(fnmatch(name, pattern) for pattern in PATTERNS)]


def _broken(folder: Path, what: str) -> MechstudyError:
    return MechstudyError(what, where=str(folder), fix=f"fetch or copy it again; or {_FROM_BASE}")


def _defect(path: Path) -> str | None:
    """What is wrong with one tokenizer; None if nothing is."""
    check = next((check for pattern, check in _CHECKS if fnmatch(path.name, pattern)), None)
    if not path.stat().st_size:
        return f"{path.name} is empty"
    return None if check is None else check(path)


def _json(path: Path) -> str | None:
    """Large vocabularies take long to parse: whether the file begins and ends as an object does."""
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(max(0, path.stat().st_size - 64))
        whole = head.lstrip().startswith(b"{") and file.read().rstrip().endswith(b"}") and len(head.strip()) > 1
    return None if whole else f"{path.name} is not JSON, or it is truncated"


def _pair(path: Path) -> str | None:
    """A vocabulary of byte pairs, which needs its merges."""
    merges = path.parent / _MERGES
    if (defect := _json(path)) is not None:
        return defect
    if not merges.exists() and not merges.is_symlink():
        return f"{_MERGES} is missing, without which {path.name} is no tokenizer"
    check_readable(merges)
    return None


def _sentencepiece(path: Path) -> str | None:
    content = path.read_bytes()
    if _TIKTOKEN.match(content) or _is_message(content):
        return None
    return f"{path.name} is no SentencePiece model, or it is truncated"


def _is_message(content: bytes) -> bool:
    """Whether bytes are the fields of a protocol buffer, up to the last byte, and the first are pieces (field 1)."""
    at, n = 0, len(content)

    def number() -> int:
        nonlocal at
        value = shift = 0
        while at < n and shift < 64:
            byte, at = content[at], at + 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        return n + 1  # longer than what is left

    if not content.startswith(b"\n"):
        return False
    while at < n:
        kind = number() & 7
        if kind == 0:
            number()
        elif kind in (1, 2, 5):
            width = {1: 8, 5: 4}.get(kind) or number()
            at += width
        else:
            return False
    return at == n


_CHECKS: tuple[tuple[str, Callable[[Path], str | None]], ...] = (
    ("vocab.json", _pair),
    ("*.json", _json),
    ("*.model", _sentencepiece),
    ("*.model.v3", _sentencepiece),
)
