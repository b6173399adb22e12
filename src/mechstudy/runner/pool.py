"""Where jobs run: in this process one after another, or in persistent worker processes side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from mechstudy.core import signals as stopping
from mechstudy.runner.run_unit import Job, Outcome, perform

_POLL = 0.2  # seconds between looks whether a stop was asked for
_SAVE_SECONDS = 120.0  # for workers to save what they have then
_TERMINATED_SECONDS = 30.0  # the same for a worker that was sent SIGTERM itself,
_IDLE_SECONDS = 3.0  # and for one that has nothing to save to hear from its parent


class WorkersDied(Exception):
    """A worker process was killed; ``jobs`` are those that were running and have no outcome."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(", ".join(job.unit.name for job in jobs))
        self.jobs = list(jobs)


class Pool(Protocol):
    """What the engine needs: to hand in a job, and to get the outcomes of some as they end."""

    width: int

    def submit(self, job: Job) -> None: ...

    def outcomes(self) -> list[Outcome]:
        """Of those that ended, at least one.

        Raises:
            WorkersDied: some were killed.
            Stopped: a stop was asked for, and those that ran have saved what they have.
        """
        ...

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

    A worker ignores Ctrl-C, which is the parent's to handle, takes SIGUSR1 and SIGTERM for a request to save and stop,
    and dies with its parent however that ends.
    """

    def __init__(self, width: int, threads: int) -> None:
        self.width = width
        self._threads = threads
        self._running: dict[Future[Outcome], Job] = {}
        self._ending = False  # all have saved what they had and wait for nothing but their end
        with _environment(OMP_NUM_THREADS=str(threads)):
            self._pool = ProcessPoolExecutor(
                width, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(threads,)
            )

    def submit(self, job: Job) -> None:
        with _environment(OMP_NUM_THREADS=str(self._threads)), _asked_later():
            try:
                self._running[self._pool.submit(_perform_in_worker, job)] = job
            except BrokenProcessPool:
                raise WorkersDied([*self._take_running(), job]) from None

    def outcomes(self) -> list[Outcome]:
        ended: set[Future[Outcome]] = set()
        while not ended:
            ended, _ = wait(self._running, timeout=_POLL, return_when=FIRST_COMPLETED)
            if stopping.requested():
                self._save()
        found: list[Outcome] = []
        broken = [future for future in ended if isinstance(future.exception(), BrokenProcessPool)]
        stopped = [future for future in ended if isinstance(future.exception(), stopping.Stopped)]
        if stopped:  # it was sent a signal that the parent was not
            stopping.request("a worker was asked to stop")
            self._save()
        for future in ended:
            if future not in broken:
                found.append(future.result())
                del self._running[future]
        if broken and not found:
            raise WorkersDied(self._take_running())
        return found

    def _save(self) -> None:
        """Has the workers stop at their next safe point, waits for them, and raises `Stopped`.

        Those that ended meanwhile are done: their artifacts are there when the study runs again.
        """
        for process in self._processes():
            if process.is_alive() and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGUSR1)
        end = time.monotonic() + _SAVE_SECONDS
        left: set[Future[Outcome]] = set(self._running)
        while left and time.monotonic() < end:
            _, left = wait(left, timeout=_POLL)
        self._ending = not left
        raise stopping.Stopped(stopping.reason())

    def _processes(self) -> list[Any]:
        return list((getattr(self._pool, "_processes", None) or {}).values())

    def stop(self) -> None:
        """Ends the workers now. What they had begun stays in its partial folder and is resumed."""
        if self._running and not self._ending:
            for process in self._processes():
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _take_running(self) -> list[Job]:
        jobs = list(self._running.values())
        self._running.clear()
        return jobs


_CACHE: dict[Any, Any] = {}  # of a worker process
_BUSY = threading.Event()  # whether it runs a job


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
    _BUSY.set()
    try:
        stopping.stop_if_requested()
        return perform(job, _CACHE, stream)
    finally:
        _BUSY.clear()


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping.install()
    signal.signal(signal.SIGTERM, _end_soon)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.SIGNALS)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=die_with_parent, daemon=True, name="die-with-parent").start()


def _end_soon(*_: object) -> None:
    """SIGTERM to a worker: the whole group was told to end, or another worker died and the executor ends the rest.

    Either way the job stops at its next safe point. Afterwards the parent ends the worker, or nobody does.
    """
    stopping.request("SIGTERM")

    def end() -> None:
        deadline = time.monotonic() + _TERMINATED_SECONDS
        while _BUSY.is_set() and time.monotonic() < deadline:
            time.sleep(_POLL)
        time.sleep(_IDLE_SECONDS if time.monotonic() < deadline else 0.0)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=end, daemon=True, name="end-soon").start()


def die_with_parent() -> None:
    """For a thread: waits for the parent's end; a worker that lived on would write where the next run writes too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        with suppress(OSError):
            parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _asked_later() -> Iterator[None]:
    """Processes started inside hear of a request to stop once they can answer it: until then it would end them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
