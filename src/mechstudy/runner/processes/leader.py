"""The leading process of a unit: hands out shares, watches the processes that run them, and raises their errors.

Each worker writes its progress to a file; the leader's bar adds them up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import Bar, Progress
from mechstudy.core.signals import Stopped, stop_if_requested
from mechstudy.machine.devices import resolve_device
from mechstudy.machine.runtime import NOTHING, ProcessGroup
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.job import Job, killed
from mechstudy.runner.processes import torchrun
from mechstudy.runner.processes.share import FOLDER, Ended, Task
from mechstudy.runner.processes.workers import LocalWorkers, Workers, torchrun_workers
from mechstudy.study.run_folder import PROGRESS
from mechstudy.study.unit import Unit

_SAVE_SECONDS = 120.0  # for workers to save what they have when a stop was requested
_HURRY_SECONDS = 10.0  # the same, when the leader was interrupted or failed
_POLL = 0.05
_LOOK_EVERY = 0.2  # seconds between looks at the workers
_KEY = "worker processes"  # in the cache, where they live as long as loaded models do


class RankFailed(RuntimeError):
    """A rank's share crashed; the text names the rank, and notes hold its traceback."""


def n_processes(unit: Unit, options: RunOptions) -> int:
    """How many processes a unit runs in: one, unless it can be shared and more were asked for."""
    if not unit.phase.shares(unit):
        return 1
    if (launch := torchrun.launched()) is not None:
        return launch.size
    return 1 if torchrun.started() else world_size(options.world_size, options.device)


def n_on_this_node(size: int) -> int:
    """How many of a unit's processes share this machine's cores: all, unless torchrun spread them over several."""
    launch = torchrun.launched()
    return size if launch is None else min(size, launch.local_size)


def world_size(asked: int | Literal["auto"], device: str, environment: Mapping[str, str] = os.environ) -> int:
    """The number asked for; ``auto`` is one per GPU that a job of a batch system may use, and one elsewhere."""
    if asked != "auto":
        return asked
    if "SLURM_JOB_ID" not in environment or resolve_device(device) != "cuda":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


class LeaderProgress(Progress):
    """The leader's progress: between `follow` and `settle` a bar counts what all ranks have done.

    It checks the workers whenever the bar advances.
    """

    _watch: Callable[[], None] | None = None
    _folders: Sequence[Path] = ()
    _looked = float("-inf")
    _own: Bar | None = None
    _all: Bar | None = None

    def follow(self, folders: Sequence[Path], watch: Callable[[], None]) -> None:
        """Adds the progress in the workers' folders from now on. ``watch`` raises where a worker failed."""
        for folder in folders:
            (folder / PROGRESS).unlink(missing_ok=True)
        self._folders, self._watch = folders, watch

    def settle(self) -> None:
        """Ends the open bar; from now on bars count this process alone."""
        if self._all is not None:
            self._count()
            super()._end(self._all)
        self._own = self._all = self._watch = None

    def look(self) -> None:
        """Checks the workers, at most every 0.2 s."""
        if self._watch is None or self._clock() - self._looked < _LOOK_EVERY:
            return
        self._looked = self._clock()
        self._watch()
        self._count()

    def _begin(self, bar: Bar) -> None:
        if self._watch is None:
            super()._begin(bar)
            return
        if self._all is not None:
            super()._end(self._all)
        self._own = bar
        done, total = self._sums(bar)
        self._all = Bar(self, bar.label, total, bar.unit, done, stops=False)
        super()._begin(self._all)

    def _advanced(self, bar: Bar, now: float) -> None:
        if bar is self._own:
            self.look()
        else:
            super()._advanced(bar, now)

    def _end(self, bar: Bar) -> None:
        if bar is not self._own:
            super()._end(bar)

    def _count(self) -> None:
        if self._own is None or self._all is None:
            return
        done, self._all.total = self._sums(self._own)
        self._all.advance(max(0, done - self._all.done), **self._own.info)

    def _sums(self, bar: Bar) -> tuple[int, int | None]:
        """Done and total of all ranks whose bar has the same label."""
        done, total = bar.done, bar.total
        for folder in self._folders:
            with suppress(MechstudyError, KeyError, TypeError):
                other = read_json(folder / PROGRESS)
                if other["label"] == bar.label:
                    done += other["done"]
                    total = None if total is None or other["total"] is None else total + other["total"]
        return done, total


class Leader(ProcessGroup):
    """Rank 0 of the processes that share one job."""

    def __init__(
        self, job: Job, size: int, threads: int, device: str, progress: LeaderProgress, cache: dict[Any, Any],
        scratch: Path,
    ) -> None:  # fmt: skip
        super().__init__(size=size)
        self._job, self._threads, self._device = job, threads, device
        self.progress, self._cache, self._scratch = progress, cache, scratch
        self._left = 0  # workers that run their share

    @contextmanager
    def sharing(self, broadcast: Mapping[str, Any] = NOTHING, *, together: bool = False) -> Iterator[None]:
        """The workers run their shares while the block runs."""
        workers = self._workers()
        place = torchrun.meeting_place() if together else None
        sent = dict(broadcast)  # an immutable mapping cannot be sent
        tasks = [Task(self._job, rank, self.size, self._threads, sent, place) for rank in range(1, self.size)]
        folders = [self._scratch / FOLDER / str(rank) for rank in range(1, self.size)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        self.progress.follow(folders, lambda: self._look(workers))
        self._left = len(tasks)
        try:
            workers.submit(tasks)
            with nullcontext() if place is None else torchrun.joined(place, 0, self.size, self._device):
                yield
            while self._left:
                self.progress.look()
                stop_if_requested()
                time.sleep(_POLL)
        except BaseException as error:
            self._cache.pop(_KEY, None)
            try:
                failure = self._end(workers, error)
            finally:
                workers.close()
            if failure is not None:
                raise failure from error
            raise
        finally:
            self.progress.settle()
            if place is not None:
                torchrun.leave(place)

    def use_batch(self, tokens: int) -> None:
        """Sets the tokens per batch of the shares that start from now on."""
        self._job = replace(self._job, options=self._job.options.replace(batch_tokens=tokens))

    def _workers(self) -> Workers:
        """The workers of the last unit where they still live, else new ones."""
        if torchrun.launched():
            return torchrun_workers()
        key = (self.size, self._threads)
        cached = self._cache.get(_KEY)
        if cached is None or cached[0] != key:
            self._cache[_KEY] = cached = (key, LocalWorkers(self.size - 1, self._threads))
        workers: Workers = cached[1]
        return workers

    def _look(self, workers: Workers) -> None:
        """Raises the error of a worker that failed since the last look."""
        shares = workers.shares()
        self._left -= len(shares)
        self.peaks = [*self.peaks, *(ended.peak_rss_bytes for ended in shares if ended.state == "done")]
        for ended in shares:
            if ended.state == "stopped":
                raise Stopped(f"rank {ended.rank} was asked to stop")
            if ended.state != "done":
                raise self._failure(ended)

    def _end(self, workers: Workers, error: BaseException) -> BaseException | None:
        """Has the workers save what they have; returns a worker's failure where that made the leader fail too."""
        # Ranks that exchange tensors fail together: the first to end takes the connections with it.
        secondary = isinstance(error, Exception) and not isinstance(error, MechstudyError | RankFailed)
        workers.stop()
        end = time.monotonic() + (_SAVE_SECONDS if isinstance(error, Stopped) else _HURRY_SECONDS)
        failure: BaseException | None = None
        while self._left > 0 and time.monotonic() < end:
            for ended in workers.shares():
                self._left -= 1
                if secondary and failure is None and ended.state in ("failed", "killed"):
                    failure = self._failure(ended)
            time.sleep(_POLL)
        return failure

    def _failure(self, ended: Ended) -> Exception:
        where = f"{self._job.unit.name}, rank {ended.rank} of {self.size}"
        if ended.state == "killed":
            return killed(where, "run the same command again: saved work is kept; or a smaller compute.world_size")
        if ended.out_of_memory:
            return MemoryError(f"rank {ended.rank}: {ended.crash or 'out of memory'}")
        if ended.error is not None:
            parts = ended.error
            at = f"{parts['where']} ({where})" if parts["where"] else where
            return MechstudyError(parts["what"], where=at, facts=parts["facts"], fix=parts["fix"])
        failed = RankFailed(f"rank {ended.rank} of {self.size}: {ended.crash}")
        failed.add_note(ended.trace)
        return failed
