"""Where jobs run: in this process one after another, or in persistent processes side by side."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from mechstudy.core import signals
from mechstudy.runner.job import Job, Outcome
from mechstudy.runner.processes.spawned import Killed, SpawnedProcesses
from mechstudy.runner.run_unit import run_unit

_POLL = 0.2  # seconds between looks whether a stop was requested
_SAVE_SECONDS = 120.0  # for processes to save what they have then


class WorkersDied(Exception):
    """A process was killed; ``jobs`` are those that were running and have no outcome."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(", ".join(job.unit.name for job in jobs))
        self.jobs = list(jobs)


class ThisProcess:
    """Runs each job in this process as it is submitted; what phases cache (loaded models) stays for the next."""

    width = 1

    def __init__(self) -> None:
        self.cache: dict[Any, Any] = {}
        self._ended: list[Outcome] = []

    def submit(self, job: Job) -> None:
        """Runs the job."""
        self._ended.append(run_unit(job, self.cache))

    def outcomes(self) -> list[Outcome]:
        """Of the jobs submitted since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Frees the loaded models."""
        self.cache.clear()


class ProcessPool(SpawnedProcesses):
    """``width`` spawned processes."""

    def __init__(self, width: int, threads: int) -> None:
        self.width = width
        super().__init__(width, threads, _run)

    def submit(self, job: Job) -> None:
        """Gives the job to an idle process."""
        number = next(number for number in range(self.width) if number not in self.working)
        self.send(number, job)

    def outcomes(self) -> list[Outcome]:
        """Of the jobs that ended; waits for the first.

        Raises:
            WorkersDied: a process was killed.
            Stopped: a stop was requested, and the jobs that ran have saved what they have.
        """
        results: dict[int, Any] = {}
        jobs = dict(self.working)
        while not results:
            results = self.ended(_POLL)
            if signals.requested():
                self._save()
        for result in results.values():
            if isinstance(result, signals.Stopped):  # the process received a signal that this one did not
                signals.request("a worker was asked to stop")
                self._save()
            if isinstance(result, BaseException):
                raise result
        outcomes = [result for result in results.values() if isinstance(result, Outcome)]
        if not outcomes:
            raise WorkersDied([*self.working.values(), *(jobs[number] for number in results)])
        # A process that was killed meanwhile is found by the next call.
        for number, result in results.items():
            if isinstance(result, Killed):
                self.working[number] = jobs[number]
        return outcomes

    def _save(self) -> None:
        """Has the processes stop at their next safe point, waits for them, and raises `Stopped`.

        Those that end meanwhile are done: their artifacts are there when the study runs again.
        """
        self.stop()
        end = time.monotonic() + _SAVE_SECONDS
        while self.working and time.monotonic() < end:
            self.ended(_POLL)
        raise signals.Stopped(signals.reason())


Pool = ThisProcess | ProcessPool


class _NoTerminal(io.TextIOBase):
    """Standard error, but no terminal, so that several processes do not draw bars over each other."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)


def _run(job: Job, cache: dict[Any, Any]) -> Outcome:
    stream: TextIO = _NoTerminal()  # type: ignore[assignment]  # all of TextIO that Progress uses
    return run_unit(job, cache, stream)
