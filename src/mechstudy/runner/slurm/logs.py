"""The logs of a unit's jobs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mechstudy.runner.slurm.record import read_record

_EVERY = 0.5  # seconds between looks at a log that is followed
_BLOCK = 1 << 16


def logs_of(run: Path, unit: str) -> list[Path]:
    """The logs of every job a unit had, oldest first; those that exist."""
    logs = (job.log(run, task) for _, job, task in read_record(run).of_unit(unit))
    return [path for path in dict.fromkeys(logs) if path.exists()]


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file; of a large one only its end is read."""
    with suppress(OSError), path.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - _BLOCK))
        return opened.read().decode(errors="replace").splitlines()[-lines:]
    return []


def print_logs(files: list[Path]) -> int:
    """Writes logs to standard output, each after its name where there are several; bytes of the last one."""
    size = 0
    for path in files:
        if len(files) > 1:
            print(f"==> {path} <==", flush=True)
        size = _print_from(path, 0)
    return size


def follow(files: Callable[[], list[Path]], position: int, over: Callable[[], bool]) -> None:
    """Goes on printing the newest log as it grows, and later ones as they come, until ``over``."""
    current = files()[-1] if files() else None
    last = False
    while not last:
        last = over()  # once more after that, for what was printed meanwhile
        newest = files()[-1] if files() else None
        if newest != current:
            print(f"==> {newest} <==", flush=True)
            current, position = newest, 0
        if current is not None:
            position = _print_from(current, position)
        if not last:
            time.sleep(_EVERY)


def _print_from(path: Path, position: int) -> int:
    with suppress(OSError), path.open("rb") as opened:
        opened.seek(position)
        data = opened.read()
        sys.stdout.write(data.decode(errors="replace"))
        sys.stdout.flush()
        return position + len(data)
    return position
