"""The leading process: hands out the shares, looks after who does them, and tells what went wrong with one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mechstudy.core.errors import MechstudyError
from mechstudy.core.signals import Stopped, stop_if_requested
from mechstudy.machine.memory import available_memory_bytes
from mechstudy.machine.process_group import NOTHING, Ranks
from mechstudy.runner.processes import torchrun
from mechstudy.runner.processes.local import Helpers, LocalHelpers
from mechstudy.runner.processes.meeting import joined, leave, meeting_place
from mechstudy.runner.processes.progress import LeaderProgress
from mechstudy.runner.processes.task import FOLDER, SHARES, Ended, Task
from mechstudy.runner.run_unit import Job, Options, resolve_device
from mechstudy.study.unit import Unit

_SAVE_SECONDS = 120.0  # for helpers to save what they have, when a stop was asked for
_HURRY_SECONDS = 10.0  # the same, when the leader was interrupted or failed
_POLL = 0.05


class RankFailed(RuntimeError):
    """A rank's share crashed; the text names the rank, and notes hold its traceback."""


def n_ranks(unit: Unit, options: Options) -> int:
    """How many processes a unit runs in: one, unless it can be shared and more were asked for."""
    if unit.entry not in SHARES:
        return 1
    if torchrun.started():
        launch = torchrun.launched()
        return 1 if launch is None else launch.size
    return world_size(options.world_size, options.device)


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


class Leader(Ranks):
    """Rank 0 of the processes that share one job."""

    def __init__(
        self, job: Job, size: int, threads: int, device: str, progress: LeaderProgress, cache: dict[Any, Any],
        scratch: Path,
    ) -> None:  # fmt: skip
        self.size = size
        self._job, self._threads, self._device = job, threads, device
        self.progress, self._cache, self._scratch = progress, cache, scratch
        self._left = 0  # helpers at work

    @contextmanager
    def helping(self, told: Mapping[str, Any] = NOTHING, *, together: bool = False) -> Iterator[None]:
        helpers = self._helpers()
        place = None if not together else torchrun.meeting_place() if torchrun.launched() else meeting_place()
        tasks = [Task.of(self._job, rank, self.size, self._threads, told, place) for rank in range(1, self.size)]
        folders = [self._scratch / FOLDER / str(rank) for rank in range(1, self.size)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        self.progress.follow(folders, lambda: self._look(helpers))
        self._left = helpers.n
        try:
            helpers.submit(tasks)
            if place is None:
                yield
            else:
                with joined(place, 0, self.size, self._device):
                    yield
            while self._left:
                self.progress.look()
                stop_if_requested()
                time.sleep(_POLL)
        except BaseException as error:
            self._cache.pop(_KEY, None)
            try:
                failure = self._end(helpers, error)
            finally:
                helpers.close()
            if failure is not None:
                raise failure from error
            raise
        finally:
            self.progress.settle()
            if place is not None:
                leave(place)

    def use_batch(self, tokens: int) -> None:
        self._job = replace(self._job, options=replace(self._job.options, batch_tokens=tokens))

    def _helpers(self) -> Helpers:
        """Those of the last unit, where they still live; new ones otherwise."""
        if (launch := torchrun.launched()) is not None:
            return torchrun.helpers(launch)
        key = (self.size, self._threads)
        kept = self._cache.get(_KEY)
        if kept is None or kept[0] != key:
            self._cache[_KEY] = kept = (key, LocalHelpers(self.size - 1, self._threads))
        helpers: Helpers = kept[1]
        return helpers

    def _look(self, helpers: Helpers) -> None:
        """Raises what went wrong with a helper since the last look."""
        found = helpers.ended()
        self._left -= len(found)
        self.peaks = [*self.peaks, *(ended.peak_rss_bytes for ended in found if ended.state == "done")]
        for ended in found:
            if ended.state == "stopped":
                raise Stopped(f"rank {ended.rank} was asked to stop")
            if ended.state != "done":
                raise self._failure(ended)

    def _end(self, helpers: Helpers, error: BaseException) -> BaseException | None:
        """Has the helpers save what they have; returns a helper's failure where that is why the leader failed too."""
        # Ranks that talk to one another fail together: whoever is first to go takes the connections with it.
        secondary = isinstance(error, Exception) and not isinstance(error, MechstudyError | RankFailed)
        helpers.stop()
        end = time.monotonic() + (_SAVE_SECONDS if isinstance(error, Stopped) else _HURRY_SECONDS)
        failure: BaseException | None = None
        while self._left > 0 and time.monotonic() < end:
            for ended in helpers.ended():
                self._left -= 1
                if secondary and failure is None and ended.state in ("failed", "killed"):
                    failure = self._failure(ended)
            time.sleep(_POLL)
        return failure

    def _failure(self, ended: Ended) -> Exception:
        where = f"{self._job.unit.name}, rank {ended.rank} of {self.size}"
        if ended.state == "killed":
            return MechstudyError(
                "its process was killed from outside, most likely because memory ran out",
                where=where,
                facts={"available": f"{available_memory_bytes() / 2**30:.1f} GiB"},
                fix="run the same command again: what it had saved is kept; or a smaller compute.world_size",
            )
        if ended.out_of_memory:
            return MemoryError(f"rank {ended.rank}: {ended.crash or 'out of memory'}")
        if ended.error is not None:
            mistake = ended.error
            at = f"{mistake['where']} ({where})" if mistake["where"] else where
            return MechstudyError(mistake["what"], where=at, facts=mistake["facts"], fix=mistake["fix"])
        failed = RankFailed(f"rank {ended.rank} of {self.size}: {ended.crash}")
        failed.add_note(ended.trace)
        return failed


_KEY = "helping processes"  # in the cache, where it lives as long as models kept loaded do
