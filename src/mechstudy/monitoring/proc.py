"""Linux's counters, read cheaply: each file below /proc and /sys is opened once and read again in place.

A look at a process takes two system calls, a look at the machine about eight. psutil opens, reads and closes every
file anew, through Python's text layer; that was most of what the sampler cost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from mechstudy.machine import cgroup

T = TypeVar("T")
PROC = Path("/proc")
_MOST_BYTES = 1 << 16  # of one file: /proc/stat of a machine with hundreds of cores
CHILDREN_EVERY = 10.0  # seconds between looks for new children: on a full login node a look costs 100 ms
CHILDREN_SHARE = 2000  # and so many times what a look took
# Fields of /proc/<pid>/stat after the name, which is in brackets and may hold anything.
_PPID, _UTIME, _STIME, _CUTIME, _CSTIME, _RSS = 1, 11, 12, 13, 14, 21


class Used(NamedTuple):
    """Of processes, since they began: CPU seconds (ended children included), resident bytes, bytes of disk."""

    cpu: float
    rss: int
    read: int | None
    write: int | None


class Machine(NamedTuple):
    """Of the machine: as in `usage.record.Sample`. What cannot be read is None."""

    machine_cpu: float | None = None
    swap: int | None = None
    available: int | None = None
    wait_cpu: float | None = None
    wait_io: float | None = None
    wait_memory: float | None = None
    throttled: float | None = None


class Closes(Protocol):
    """What holds files open."""

    def close(self) -> None: ...


class OpenFile:
    """A file of the kernel's that is read again and again."""

    def __init__(self, path: Path | str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        """What it says now. Of a process that has ended: ProcessLookupError, also when another has its number."""
        return os.pread(self._fd, _MOST_BYTES, 0)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class OneProcess:
    """The counters of one process."""

    def __init__(self, pid: int, proc: Path = PROC) -> None:
        self._stat = OpenFile(f"{proc}/{pid}/stat")
        self._io: OpenFile | None = None
        with suppress(OSError):  # others' are not to be read
            self._io = OpenFile(f"{proc}/{pid}/io")
        self._tick = 1.0 / os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def used(self) -> Used:
        """What it has used so far.

        Raises:
            OSError: it has ended.
        """
        found = _fields(self._stat.read())
        ticks = int(found[_UTIME]) + int(found[_STIME]) + int(found[_CUTIME]) + int(found[_CSTIME])
        read = write = None
        if self._io is not None:
            with suppress(OSError):
                read, write = _bytes_of_disk(self._io.read())
        return Used(ticks * self._tick, int(found[_RSS]) * self._page, read, write)

    def close(self) -> None:
        self._stat.close()
        if self._io is not None:
            self._io.close()


class ProcessTree:
    """This process and its children, theirs included. New ones are found every few seconds."""

    def __init__(self, clock: Callable[[], float], pid: int | None = None, proc: Path = PROC) -> None:
        self._clock, self._proc = clock, proc
        self._pid = os.getpid() if pid is None else pid
        self._held = {self._pid: OneProcess(self._pid, proc)}
        self._look_at = float("-inf")

    def used(self) -> Used:
        """All of them together; what an ended child used is in its parent's counters."""
        if self._clock() >= self._look_at:
            self._look()
        cpu, rss = 0.0, 0
        read: int | None = None
        write: int | None = None
        for pid, process in list(self._held.items()):
            try:
                one = process.used()
            except OSError:
                self._held.pop(pid).close()
                continue
            cpu, rss = cpu + one.cpu, rss + one.rss
            if one.read is not None and one.write is not None:
                read, write = (read or 0) + one.read, (write or 0) + one.write
        return Used(cpu, rss, read, write)

    def close(self) -> None:
        for process in self._held.values():
            process.close()
        self._held.clear()

    def _look(self) -> None:
        began = time.perf_counter()
        for pid in descendants(self._pid, self._proc) - self._held.keys():
            with suppress(OSError):
                self._held[pid] = OneProcess(pid, self._proc)
        took = time.perf_counter() - began
        self._look_at = self._clock() + max(CHILDREN_EVERY, CHILDREN_SHARE * took)


class MachineFiles:
    """The counters of the machine and of the cgroups this process is in."""

    def __init__(self) -> None:
        self._files: dict[str, OpenFile] = {}
        names = {"stat": "stat", "meminfo": "meminfo", "vmstat": "vmstat"}
        names |= {what: f"pressure/{what}" for what in ("cpu", "io", "memory")}
        for name, path in names.items():
            with suppress(OSError):
                self._files[name] = OpenFile(PROC / path)
        self._limits = [limit for folder, version in cgroup.folders("memory") if (limit := _limit(folder, version))]
        self._quotas = [quota for folder, version in cgroup.folders("cpu") if (quota := _quota(folder, version))]
        self._tick = 1.0 / os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> Machine:
        """All of it now."""
        throttled = [seconds for quota in self._quotas if (seconds := _try(quota.throttled)) is not None]
        available = _try(self._available)
        left = [bytes_left for limit in self._limits if (bytes_left := _try(limit.left)) is not None]
        if available is not None:
            available = max(0, min([available, *left]))
        waited = (self._waited("cpu"), self._waited("io"), self._waited("memory"))
        return Machine(_try(self._busy), _try(self._swapped), available, *waited, max(throttled, default=None))

    def close(self) -> None:
        held: list[Closes] = [*self._files.values(), *self._limits, *self._quotas]
        for one in held:
            one.close()

    def _busy(self) -> float:
        """CPU seconds of all cores, but idle ones and those that wait for a disk; guests count as users already."""
        first = self._files["stat"].read().split(b"\n", 1)[0].split()
        user, nice, system, _idle, _iowait, *rest = (int(word) for word in first[1:9])
        return (user + nice + system + sum(rest)) * self._tick

    def _swapped(self) -> int:
        said = self._files["vmstat"].read()
        return (_after(said, b"pswpin ") + _after(said, b"pswpout ")) * self._page

    def _available(self) -> int:
        return _after(self._files["meminfo"].read(), b"MemAvailable:") * 1024

    def _waited(self, what: str) -> float | None:
        """Seconds so far in which some process waited for it."""
        return _try(lambda: _after(self._files[what].read(), b"total=") / 1e6)  # the first line is "some"


class _Limit:
    """A cgroup's limit of memory."""

    def __init__(self, limit: int, used: OpenFile, stat: OpenFile, key: bytes) -> None:
        self._limit, self._used, self._stat, self._key = limit, used, stat, key

    def left(self) -> int:
        """Bytes: page cache counts as used, but is given back on demand."""
        return self._limit - int(self._used.read()) + _after(self._stat.read(), self._key)

    def close(self) -> None:
        self._used.close()
        self._stat.close()


def _limit(folder: Path, version: int) -> _Limit | None:
    """None where the cgroup has none."""
    names = ("memory.max", "memory.current", b"\ninactive_file ")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", b"\ntotal_inactive_file ")
    with suppress(OSError, ValueError):
        limit = int((folder / names[0]).read_text())  # "max" is a ValueError
        if limit < cgroup.UNLIMITED:
            return _Limit(limit, OpenFile(folder / names[1]), OpenFile(folder / "memory.stat"), names[2])
    return None


class _Quota:
    """A cgroup's count of the time in which its CPU quota was used up."""

    def __init__(self, stat: OpenFile, key: bytes, second: float) -> None:
        self._stat, self._key, self._second = stat, key, second

    def throttled(self) -> float:
        return _after(self._stat.read(), self._key) / self._second

    def close(self) -> None:
        self._stat.close()


def _quota(folder: Path, version: int) -> _Quota | None:
    """None where the cgroup does not count it."""
    key, second = (b"throttled_usec ", 1e6) if version == 2 else (b"throttled_time ", 1e9)
    with suppress(OSError, ValueError):
        quota = _Quota(OpenFile(folder / "cpu.stat"), key, second)
        quota.throttled()
        return quota
    return None


def descendants(pid: int, proc: Path = PROC) -> set[int]:
    """Children of a process, theirs included, as they are now."""
    parents: dict[int, list[int]] = {}
    for name in (entry.name for entry in os.scandir(proc)):
        if name.isdecimal():
            with suppress(OSError, IndexError, ValueError):
                fd = os.open(f"{proc}/{name}/stat", os.O_RDONLY)
                try:
                    parents.setdefault(int(_fields(os.read(fd, 512))[_PPID]), []).append(int(name))
                finally:
                    os.close(fd)
    found: set[int] = set()
    ahead = [pid]
    while ahead:
        new = [child for child in parents.get(ahead.pop(), ()) if child not in found]
        found.update(new)
        ahead.extend(new)
    return found


def _fields(stat: bytes) -> list[bytes]:
    return stat[stat.rindex(b")") + 2 :].split(None, _RSS + 1)


def _bytes_of_disk(io: bytes) -> tuple[int, int]:
    return _after(io, b"\nread_bytes: "), _after(io, b"\nwrite_bytes: ")


def _after(text: bytes, key: bytes) -> int:
    """The number after a key.

    Raises:
        ValueError: the key is not there.
    """
    start = text.index(key) + len(key)
    return int(text[start : start + 32].split(None, 1)[0])


def _try(read: Callable[[], T]) -> T | None:
    with suppress(OSError, ValueError, KeyError, IndexError):
        return read()
    return None
