"""One run of a study at a time: a lock the operating system frees when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from mechstudy.core.disk import disk_errors
from mechstudy.core.errors import MechstudyError

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class RunLock:
    """``with RunLock(folder):`` holds ``<folder>/lock`` alone, with pid, host and start time written in it.

    The lock is the kernel's (``flock``), so a lock file left by a killed process is no obstacle. On file
    systems without ``flock`` a living process of this host that is written in the file counts as the holder.

    Raises (on entering):
        MechstudyError: another process holds it; names pid, host and since when.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "lock"
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if not _take(descriptor):
                    raise _refusal(self.path, _read(descriptor))
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
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    @staticmethod
    def holder(folder: Path) -> dict[str, Any] | None:
        """``{pid, host, since}`` of the process that runs a study in this folder now, or None."""
        try:
            descriptor = os.open(Path(folder) / "lock", os.O_RDWR)
        except OSError:
            return None
        try:
            return None if _take(descriptor) else _read(descriptor)
        finally:
            os.close(descriptor)


def _take(descriptor: int) -> bool:
    """True when this descriptor now holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


def _refusal(path: Path, holder: dict[str, Any]) -> MechstudyError:
    return MechstudyError(
        "this study is already running",
        where=str(path.parent),
        facts={
            "pid": str(holder.get("pid", "unknown")),
            "host": str(holder.get("host", "unknown")),
            "since": str(holder.get("since", "unknown")),
        },
        fix="wait for it, or stop that process: its finished work is kept",
    )
