"""Where jobs run: in this process one after another, or in persistent worker processes side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from mechstudy.execution.jobs import Job, Outcome, perform


class WorkersDied(Exception):
    """A worker process was killed; ``jobs`` are those that were running and have no outcome."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(", ".join(job.unit.name for job in jobs))
        self.jobs = list(jobs)


class Pool(Protocol):
    """What the engine needs: to hand in a job, and to get the outcomes of some as they end."""

    width: int

    def submit(self, job: Job) -> None: ...

    def outcomes(self) -> list[Outcome]: ...

    def stop(self) -> None: ...


class Here:
    """Runs each job in this process as it is handed in; what phases cache (loaded models) stays for the next."""

    width = 1

    def __init__(self) -> None:
        self.cache: dict[Any, Any] = {}
        self._ended: list[Outcome] = []

    def submit(self, job: Job) -> None:
        self._ended.append(perform(job, self.cache))

    def outcomes(self) -> list[Outcome]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        self.cache.clear()


class Workers:
    """``width`` persistent spawned processes. Each has its own cache of loaded models, and its share of threads.

    A worker ignores Ctrl-C, which is the parent's to handle, and dies with its parent however that ends.
    """

    def __init__(self, width: int, threads: int) -> None:
        self.width = width
        self._threads = threads
        self._running: dict[Future[Outcome], Job] = {}
        with _environment(OMP_NUM_THREADS=str(threads)):
            self._pool = ProcessPoolExecutor(
                width, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(threads,)
            )

    def submit(self, job: Job) -> None:
        with _environment(OMP_NUM_THREADS=str(self._threads)):
            try:
                self._running[self._pool.submit(_perform_in_worker, job)] = job
            except BrokenProcessPool:
                raise WorkersDied([*self._take_running(), job]) from None

    def outcomes(self) -> list[Outcome]:
        ended, _ = wait(self._running, return_when=FIRST_COMPLETED)
        found: list[Outcome] = []
        broken = [future for future in ended if isinstance(future.exception(), BrokenProcessPool)]
        for future in ended:
            if future not in broken:
                found.append(future.result())
                del self._running[future]
        if broken and not found:
            raise WorkersDied(self._take_running())
        return found

    def stop(self) -> None:
        """Ends the workers now. What they had begun stays in its partial folder and is resumed."""
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        if self._running:
            for process in processes:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _take_running(self) -> list[Job]:
        jobs = list(self._running.values())
        self._running.clear()
        return jobs


_CACHE: dict[Any, Any] = {}  # of a worker process


class _NoTerminal:
    """Standard error as a plain stream, so that several workers do not draw bars over each other."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return False


def _perform_in_worker(job: Job) -> Outcome:
    stream: TextIO = _NoTerminal()  # type: ignore[assignment]  # all of TextIO that Progress uses
    return perform(job, _CACHE, stream)


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=die_with_parent, daemon=True, name="die-with-parent").start()


def die_with_parent() -> None:
    """For a thread: waits for the parent's end; a worker that lived on would write where the next run writes too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        with suppress(OSError):
            parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables that processes started inside inherit."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
