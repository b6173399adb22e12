"""Atomic file writes, and clear errors for full disks and folders that cannot be written."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from mechstudy.core.errors import MechstudyError

T = TypeVar("T")

_FULL = (errno.ENOSPC, errno.EDQUOT)
UNREADABLE = (errno.ESTALE, errno.EIO)  # the file system failed, which says nothing about the file
UNREADABLE_FIX = "the file system is at fault: look at the mount, then run the same command again"
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL_TEXT = re.compile(r"no space left on device|disk quota exceeded|os error (28|122)\b", re.IGNORECASE)


def is_full_disk(error: BaseException) -> bool:
    """True for ENOSPC and EDQUOT, also where a library wraps them in its own exception's text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return isinstance(error, Exception) and bool(_FULL_TEXT.search(str(error)))


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk inside the block into a MechstudyError with the folder and the bytes free.

    Likewise a folder without write permission, or a file in place of a folder. Other errors pass through.
    """
    try:
        yield
    except MechstudyError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REFUSED:
            raise MechstudyError(f"cannot be written: {error.strerror}", where=str(error.filename or folder)) from error
        if isinstance(error, FileExistsError | NotADirectoryError) and error.filename is not None:
            raise MechstudyError(
                "a file stands where a folder is needed", where=str(error.filename), fix="name a folder"
            ) from error
        if not is_full_disk(error):
            raise
        raise MechstudyError(
            "the disk is full (or its quota is used up)",
            where=str(folder),
            facts={"free": free_text(folder)},
            fix="free some space and run the same command again: finished work is kept",
        ) from error


def free_text(folder: Path) -> str:
    """Bytes free on the folder's disk as text; ``unknown`` where that cannot be read."""
    for parent in (folder, *folder.parents):
        if parent.exists():
            with suppress(OSError):
                return f"{shutil.disk_usage(parent).free:,} bytes"
            break
    return "unknown"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``: on success fsynced and renamed onto it, on failure deleted.

    Temporary files left by killed processes are deleted first. Raises MechstudyError on a full disk.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in stale_temporaries(path.parent, path.name):
            stale.unlink(missing_ok=True)
        try:
            yield temporary
            fsync_file(temporary)
            temporary.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def not_stale(read: Callable[[], T]) -> T:
    """The result of ``read``, repeated once where NFS reports that the open file was replaced (ESTALE)."""
    try:
        return read()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    return read()


def stale_temporaries(folder: Path, name: str | None = None) -> list[Path]:
    """Temporary files that killed processes left behind in `atomic_path`, for one file name or all."""
    pattern = re.compile(rf"\.{re.escape(name) if name else '.+'}\.tmp-\d+")
    return [entry for entry in folder.iterdir() if pattern.fullmatch(entry.name)]


def fsync_file(path: Path) -> None:
    """Forces a file's bytes to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Forces a folder's entries (names, renames) to disk. Silent where the file system cannot."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
