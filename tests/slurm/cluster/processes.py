"""Processes of the cluster: started, shown apart from others that got the same pid later, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL = 0.1


@dataclass(frozen=True)
class Process:
    """A process by pid and by when it started (clock ticks since boot), which together are never used again."""

    name: str
    pid: int
    started: int

    def alive(self) -> bool:
        return _started(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Signals it where it is still this process."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start(name: str, command: Sequence[str], *, output: Path, environment: Mapping[str, str]) -> Process:
    """Starts a daemon in a session of its own, so that no Ctrl-C here reaches it."""
    with output.open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=dict(environment), cwd=output.parent,
        )  # fmt: skip
    return Process(name, child.pid, _started(child.pid) or 0)


def end(processes: Iterable[Process], *, patience: float = 15.0) -> None:
    """Ends processes together: asked first, killed where they have not ended in so many seconds."""
    processes = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.signal(number)
        deadline = time.monotonic() + patience
        while any(process.alive() for process in processes) and time.monotonic() < deadline:
            time.sleep(_POLL)


def of_jobs(slurm_conf: Path) -> list[Process]:
    """What a cluster's slurmd has started for its jobs, by the environment it gave them."""
    conf = f"SLURM_CONF={slurm_conf}".encode()
    return [
        process
        for process, variables in _environments()
        if conf in variables and any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables)
    ]


def carrying(variable: str, value: str) -> list[Process]:
    """Every process that was started with this in its environment, or whose parent was."""
    wanted = f"{variable}={value}".encode()
    return [process for process, variables in _environments() if wanted in variables]


def _environments() -> Iterator[tuple[Process, list[bytes]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (since := _started(pid := int(entry.name))) is not None:
            with suppress(OSError):
                yield Process("", pid, since), (entry / "environ").read_bytes().split(b"\0")


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where it has ended, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
