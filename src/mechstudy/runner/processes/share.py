"""One process' share of a unit: the task that its leader sends, its progress, and how it ended."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Bar, Progress
from mechstudy.core.signals import Stopped
from mechstudy.machine.devices import device_of, exact_products, set_threads
from mechstudy.machine.memory import peak_rss_bytes, reset_peak_rss
from mechstudy.machine.runtime import ProcessGroup, Runtime, is_out_of_memory
from mechstudy.runner.job import Job, crash_line
from mechstudy.runner.processes.torchrun import joined

FOLDER = "ranks"  # in the scratch folder: progress of every process but the leader


@dataclass(frozen=True)
class Task:
    """One process' share of a unit: ``rank`` of ``size``.

    ``group`` is the meeting place of processes that exchange tensors.
    """

    job: Job
    rank: int
    size: int
    threads: int
    broadcast: Mapping[str, Any]
    group: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for processes on other machines."""
        return {**vars(self), "job": self.job.as_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Task:
        """The task that `as_json` made."""
        return cls(**{**values, "job": Job.from_json(values["job"])})


@dataclass(frozen=True)
class Ended:
    """How a share ended. ``error`` holds the four parts of a user's error, ``crash`` one line of any other."""

    rank: int
    state: Literal["done", "stopped", "failed", "killed"]
    peak_rss_bytes: int = 0
    error: Mapping[str, Any] | None = None
    crash: str | None = None
    out_of_memory: bool = False
    trace: str = field(default="", repr=False)


class WorkerProgress(Progress):
    """Writes the file that the leader reads, and prints messages; draws nothing."""

    def _begin(self, bar: Bar) -> None:
        self._write_file(bar, force=True)

    def _advanced(self, bar: Bar, now: float) -> None:
        self._write_file(bar)

    _end = _begin


def run_share(task: Task, cache: dict[Any, Any], local_rank: int) -> Ended:
    """Runs a share in this process. Every error but an interruption is part of the result."""
    reset_peak_rss()
    try:
        _share(task, cache, local_rank)
    except Stopped:
        return Ended(task.rank, "stopped")
    except MechstudyError as error:
        parts = {"what": error.what, "where": error.where, "facts": error.facts, "fix": error.fix}
        return Ended(task.rank, "failed", error=parts, trace=traceback.format_exc())
    except Exception as error:
        short_of_memory, trace = is_out_of_memory(error), traceback.format_exc()
        return Ended(task.rank, "failed", crash=crash_line(error), out_of_memory=short_of_memory, trace=trace)
    return Ended(task.rank, "done", peak_rss_bytes())


def _share(task: Task, cache: dict[Any, Any], local_rank: int) -> None:
    job, unit, phase = task.job, task.job.unit, task.job.unit.phase
    artifacts = job.load_inputs()
    writer = job.writer(artifacts, helps=True)
    folder, who = writer.scratch / FOLDER / str(task.rank), f"{unit.name} (rank {task.rank})"
    progress = WorkerProgress(folder, phase=phase.name, unit=who, log_file=job.log_file)
    set_threads(task.threads)
    exact_products()
    device = device_of(job.options.device, local_rank)
    group = ProcessGroup(task.rank, task.size, task.broadcast)
    runtime = Runtime(job.options, device, task.threads, job.options.batch_tokens, progress, cache, group=group)
    with nullcontext() if task.group is None else joined(task.group, task.rank, task.size, device):
        phase.share(unit.spec, phase.collect(unit, artifacts), writer, runtime)
