"""One process at a time: locks the operating system frees when the process ends, however it ends.

A run's folder has one (`RunLock`): a study run on this machine holds it alone, jobs of a batch system hold it
together. Each unit that runs as a job has one of its own, and so has what is submitted.
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
from types import TracebackType
from typing import Any, Self

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_GLANCE = 0.2  # seconds: someone who only looks who holds the lock has let go of it by then
_POLL = 0.05


class FileLock:
    """``with FileLock(path):`` holds the file alone, with pid, host and start time written in it.

    The lock is the kernel's (``flock``), so a lock file left by a killed process is no obstacle. On file
    systems without ``flock`` a living process of this host that is written in the file counts as the holder.

    Args:
        shared: hold it together with others who share it; whoever wants it alone is kept out. Nothing is written.
        wait: seconds to wait for whoever holds it.
        what, fix: of the error.

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
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                end = time.monotonic() + self.wait
                while not _take(descriptor, shared=self.shared):
                    if time.monotonic() >= end:
                        raise self._refusal(_read(descriptor))
                    time.sleep(_POLL)
                if not self.shared:
                    _write(descriptor, _self())
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None, "the lock was not entered"
        if not self.shared:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def _refusal(self, holder: dict[str, Any]) -> MechstudyError:
        return MechstudyError(
            self._what,
            where=str(self.path.parent),
            facts={
                "pid": str(holder.get("pid", "unknown")),
                "host": str(holder.get("host", "unknown")),
                "since": str(holder.get("since", "unknown")),
            },
            fix=self._fix,
        )

    @staticmethod
    def held_by(path: Path) -> dict[str, Any] | None:
        """``{pid, host, since}`` of the process that holds it alone now, or None. Looking disturbs nobody."""
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
        return MechstudyError(  # whoever shares it writes nothing into it
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


def _self() -> dict[str, Any]:
    import psutil

    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "process_started": psutil.Process().create_time(),
    }


def _is_alive(holder: dict[str, Any]) -> bool:
    """True when the holder is a process of this host that started when it says (pids are used again)."""
    import psutil

    if holder.get("host") != platform.node():
        return False
    with suppress(psutil.Error, KeyError, TypeError, ValueError):
        started = psutil.Process(int(holder["pid"])).create_time()
        return abs(started - float(holder["process_started"])) < 1.0
    return False


def _read(descriptor: int) -> dict[str, Any]:
    with suppress(ValueError, OSError):
        found = json.loads(os.pread(descriptor, 4096, 0))
        if isinstance(found, dict):
            return found
    return {}


def _write(descriptor: int, holder: dict[str, Any]) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
    os.fsync(descriptor)
