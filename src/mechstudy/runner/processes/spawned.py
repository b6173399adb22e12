"""Processes started by this one: each runs tasks one after another until its parent closes its pipe, or dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from mechstudy.core import signals

_END_SECONDS = 2.0  # for an idle process to see that its pipe is closed


class Killed:
    """Takes the place of a result: the process ended without one."""


class SpawnedProcesses:
    """``n`` processes that call ``work(task, cache)``, each with its share of threads and its cache of loaded models.

    They ignore Ctrl-C, which is the parent's to handle, take SIGTERM and SIGUSR1 for a request to save and stop, and
    die with the parent however that ends: an orphan would write where the next run writes.
    """

    def __init__(self, n: int, threads: int, work: Callable[[Any, dict[Any, Any]], Any]) -> None:
        self.working: dict[int, Any] = {}  # number -> the task it runs
        self._pipes: dict[int, Connection] = {}
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}
        spawn = multiprocessing.get_context("spawn")
        with _inherited(threads):
            for number in range(n):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_serve, args=(theirs, work), daemon=True, name=f"worker {number}")
                process.start()
                theirs.close()  # so that the pipe ends when the process does
                self._pipes[number], self._processes[number] = ours, process

    def send(self, number: int, task: Any) -> None:
        """Gives a process its next task."""
        self.working[number] = task
        with suppress(OSError):  # it is dead: `ended` says so
            self._pipes[number].send(task)

    def ended(self, timeout: float = 0.0) -> dict[int, Any]:
        """Number -> what came of its task, of the processes that ended theirs since the last call.

        A result is what ``work`` returned, or the exception that it raised, or `Killed`.
        """
        numbers = {self._pipes[number]: number for number in self.working}
        results: dict[int, Any] = {}
        for pipe in wait(list(numbers), timeout):
            number = numbers[pipe]  # type: ignore[index]  # only our pipes were waited for
            try:
                results[number] = self._pipes[number].recv()
            except (EOFError, OSError):
                results[number] = Killed()
            del self.working[number]
        return results

    def stop(self) -> None:
        """Asks those at work to save what they have and to end."""
        for number in self.working:
            process = self._processes[number]
            if process.is_alive() and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGUSR1)

    def close(self) -> None:
        """Ends all of them now. What they had begun stays in its partial folder and is resumed."""
        for number, process in self._processes.items():
            with suppress(OSError):
                self._pipes[number].close()
            if number in self.working:
                process.kill()
        for process in self._processes.values():
            with suppress(OSError, ValueError):
                process.join(_END_SECONDS)
                if process.is_alive():
                    process.kill()
                    process.join()
        self.working.clear()
        self._processes.clear()

    def __del__(self) -> None:
        with suppress(Exception):  # at the interpreter's end anything may be gone
            self.close()


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """Processes started inside use so many threads, and receive a request to stop once they can answer it."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _serve(pipe: Connection, work: Callable[[Any, dict[Any, Any]], Any]) -> None:
    """The life of a process: tasks come through the pipe until the parent closes it, or a stop is requested."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
    threading.Thread(target=_die_with_parent, daemon=True, name="die-with-parent").start()
    cache: dict[Any, Any] = {}
    while not signals.requested():
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = work(task, cache)
        except BaseException as error:  # the parent's to raise
            result = error
        with suppress(OSError):  # the parent has closed the pipe, or died
            pipe.send(result)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        with suppress(OSError):
            parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
