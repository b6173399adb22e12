"""Locks that the operating system frees when their process ends, however it ends.

A run's folder has one (`RunLock`): a study run on this machine holds it alone, jobs of a batch system share it. Each
unit that runs as a job has one of its own, and so has each submission.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_GLANCE = 0.2  # seconds: a process that only reads who holds the lock has released it by then
_POLL = 0.05


class FileLock:
    """``with FileLock(path):`` holds the file alone, with pid, host and start time written in it.

    The lock is the kernel's (``flock``), so a lock file left by a killed process is no obstacle. On file
    systems without ``flock`` a living process of this host that is written in the file counts as the holder.

    Args:
        path: the lock's file.
        shared: hold it together with others who share it and keep out whoever wants it alone. Nothing is written.
        wait: seconds to wait for the holder.
        what: the error's message.
        fix: the error's remedy.

    Raises (on entering):
        MechstudyError: another process holds it; names pid, host and since when.
    """

    def __init__(
        self,
        path: Path,
        *,
        shared: bool = False,
        wait: float = 0.0,
        what: str = "another process is at work here",
        fix: str = "wait for it, or stop that process: its finished work is kept",
    ) -> None:
        self.path = Path(path)
        self.shared, self.wait = shared, max(wait, _GLANCE)
        self._what, self._fix = what, fix
        self._descriptor = -1

    def __enter__(self) -> Self:
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                end = time.monotonic() + self.wait
                while not _take(self._descriptor, shared=self.shared):
                    if time.monotonic() >= end:
                        raise self._refusal(_read(self._descriptor))
                    time.sleep(_POLL)
                if not self.shared:
                    os.ftruncate(self._descriptor, 0)
                    os.pwrite(self._descriptor, (json.dumps(_this_process()) + "\n").encode(), 0)
                    os.fsync(self._descriptor)
            except BaseException:
                os.close(self._descriptor)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.shared:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _refusal(self, holder: dict[str, Any]) -> MechstudyError:
        facts = {name: str(holder.get(name, "unknown")) for name in ("pid", "host", "since")}
        return MechstudyError(self._what, where=str(self.path.parent), facts=facts, fix=self._fix)

    @staticmethod
    def held_by(path: Path) -> dict[str, Any] | None:
        """``{pid, host, since}`` of the process that holds it alone now, or None. Reading blocks nobody."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            return None
        try:
            return None if _take(descriptor, shared=True) else _read(descriptor)
        finally:
            os.close(descriptor)


class RunLock(FileLock):
    """``with RunLock(folder):`` holds ``<folder>/lock`` alone; ``shared`` with the study's other jobs."""

    def __init__(self, folder: Path, *, shared: bool = False, wait: float = 0.0) -> None:
        super().__init__(Path(folder) / "lock", shared=shared, wait=wait, what="this study is already running")

    def _refusal(self, holder: dict[str, Any]) -> MechstudyError:
        if holder and (holder.get("host") != platform.node() or _is_alive(holder)):
            return super()._refusal(holder)
        return MechstudyError(  # shared: nobody is written in the file
            "jobs of this study are running",
            where=str(self.path.parent),
            fix="wait for them (`mechstudy status`), or `mechstudy cancel`: their finished work is kept",
        )

    @staticmethod
    def holder(folder: Path) -> dict[str, Any] | None:
        """``{pid, host, since}`` of the process that runs a study in this folder now, alone, or None."""
        return FileLock.held_by(Path(folder) / "lock")


def _take(descriptor: int, *, shared: bool = False) -> bool:
    """True when this descriptor now holds the lock."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _UNSUPPORTED:
            return not _is_alive(_read(descriptor))
        raise
    return True


def _this_process() -> dict[str, Any]:
    import psutil

    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "process_started": psutil.Process().create_time(),
    }


def _is_alive(holder: dict[str, Any]) -> bool:
    """True when the holder is a process of this host that started at the recorded time (pids are used again)."""
    import psutil

    if holder.get("host") == platform.node():
        with suppress(psutil.Error, KeyError, TypeError, ValueError):
            started = psutil.Process(int(holder["pid"])).create_time()
            return bool(abs(started - float(holder["process_started"])) < 1.0)
    return False


def _read(descriptor: int) -> dict[str, Any]:
    with suppress(ValueError, OSError):
        content = json.loads(os.pread(descriptor, 4096, 0))
        if isinstance(content, dict):
            return content
    return {}
