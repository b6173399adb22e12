"""The sha256 of whole files, remembered, so that large files of users are read once and not by every command.

A digest is kept in the cache folder under the file's real path and is valid for one size, modification time, change
time and inode. Files of a run have their checksums in manifests (`manifest.sha256_of`), which always reads.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import UNREADABLE, UNREADABLE_FIX, not_stale
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.machine.cache import cache_folder

FOLDER = "sha256"  # of the cache folder
_SMALL = 1 << 20  # bytes: read faster than an entry is written
_SETTLED = 2.0  # seconds: a file this young may change again within one tick of its file system's clock
_IN_PROCESS: dict[Path, tuple[list[int], str]] = {}  # where the cache folder cannot be written


def file_sha256(path: Path) -> str:
    """The sha256 (hex) of a whole file.

    Raises:
        MechstudyError: the file cannot be read.
    """
    try:
        return not_stale(lambda: _digest(Path(os.path.realpath(path))))
    except OSError as error:
        fix = UNREADABLE_FIX if error.errno in UNREADABLE else None
        raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from None


def bytes_to_read(paths: Iterable[Path]) -> int:
    """Bytes of the files whose digests are not known yet."""
    total = 0
    for path in paths:
        with suppress(OSError):
            real = Path(os.path.realpath(path))
            if _known(real, _state(real)) is None:
                total += real.stat().st_size
    return total


def _digest(real: Path) -> str:
    state = _state(real)
    if (known := _known(real, state)) is not None:
        return known
    with real.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if state[0] > _SMALL and _state(real) == state and time.time() - max(state[1:3]) / 1e9 > _SETTLED:
        _IN_PROCESS[real] = state, digest
        with suppress(OSError, MechstudyError):
            write_json_atomic(_entry(real), {"path": str(real), "state": state, "sha256": digest})
    return digest


def _known(real: Path, state: list[int]) -> str | None:
    """The digest kept for this state of a file."""
    if real not in _IN_PROCESS and state[0] > _SMALL:
        with suppress(OSError, MechstudyError, KeyError, TypeError, ValueError):
            entry = read_json(_entry(real))
            if entry["path"] == str(real):
                _IN_PROCESS[real] = [int(number) for number in entry["state"]], str(entry["sha256"])
    known = _IN_PROCESS.get(real)
    return known[1] if known is not None and known[0] == state else None


def _state(real: Path) -> list[int]:
    """Size, modification time, change time (which no program can set) and inode."""
    status = real.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _entry(real: Path) -> Path:
    return cache_folder() / FOLDER / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
