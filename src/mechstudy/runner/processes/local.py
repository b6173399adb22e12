"""Helping processes on this machine: started once, kept for the units that follow, ended with their leader."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol

from mechstudy.runner.pool import die_with_parent
from mechstudy.runner.processes.task import Ended, Task, do_share


class Helpers(Protocol):
    """The processes of ranks 1, 2, ..., as their leader needs them."""

    n: int

    def submit(self, tasks: Sequence[Task]) -> None:
        """One task for each of them."""

    def ended(self) -> list[Ended]:
        """Those that ended since the last call. Does not wait."""

    def stop(self) -> None:
        """Asks those at work to save what they have and to end."""

    def close(self) -> None:
        """Ends all of them now."""


class LocalHelpers:
    """``n`` spawned processes, ranks 1 to n. Each keeps the models it has loaded.

    They ignore Ctrl-C, which is the leader's to handle, take SIGTERM and SIGUSR1 for a request to save and stop, and
    die with the leader however that ends.
    """

    def __init__(self, n: int, threads: int) -> None:
        self.n = n
        self._working: set[int] = set()
        self._pipes: dict[int, Connection] = {}
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}
        spawn = multiprocessing.get_context("spawn")
        for rank in range(1, n + 1):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, rank, threads), daemon=True, name=f"rank {rank}")
            process.start()
            theirs.close()  # so that the pipe ends when the process does
            self._pipes[rank], self._processes[rank] = ours, process

    def submit(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self._working.add(task.rank)
            with suppress(OSError):  # it is dead: `ended` says so
                self._pipes[task.rank].send(task)

    def ended(self) -> list[Ended]:
        found = []
        for rank in sorted(self._working):
            try:
                if not self._pipes[rank].poll():
                    continue
                found.append(self._pipes[rank].recv())
            except (EOFError, OSError):
                found.append(Ended(rank, "killed"))
            self._working.discard(rank)
        return found

    def stop(self) -> None:
        for rank in self._working:
            process = self._processes[rank]
            if process.is_alive() and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGUSR1)

    def close(self) -> None:
        for rank, process in self._processes.items():
            with suppress(OSError):
                self._pipes[rank].close()
            with suppress(OSError, ValueError):
                if rank in self._working:
                    process.kill()
                process.join(2)
                if process.is_alive():
                    process.kill()
                    process.join()
        self._working.clear()
        self._processes.clear()

    def __del__(self) -> None:
        with suppress(Exception):  # at the interpreter's end anything may be gone
            self.close()


def _serve(pipe: Connection, rank: int, threads: int) -> None:
    """A helper's life: tasks come through the pipe until the leader closes it."""
    from mechstudy.core import signals as stopping

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping.install()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=die_with_parent, daemon=True, name="die-with-parent").start()
    cache: dict[Any, Any] = {}
    while not stopping.requested():
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(do_share(task, cache, rank))
