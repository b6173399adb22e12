"""The processes beside a unit's leader: started by it on this machine, or by torchrun.

Under torchrun one command runs in every process; tasks and how they ended go through its store, as JSON.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from typing import Any

from mechstudy.core import signals
from mechstudy.runner.processes.share import Ended, Task, run_share
from mechstudy.runner.processes.spawned import SpawnedProcesses
from mechstudy.runner.processes.torchrun import Launch, claim, launched, shared_store

_END = "end"  # in place of a task: there are no more
_WAIT = timedelta(seconds=1)


class LocalWorkers(SpawnedProcesses):
    """Spawned processes, ranks 1, 2, ..."""

    def __init__(self, n: int, threads: int) -> None:
        super().__init__(n, threads, _run)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Gives each process its task."""
        for task in tasks:
            self.send(task.rank - 1, task)

    def shares(self) -> list[Ended]:
        """The shares that ended since the last call. Does not wait."""
        results = sorted(self.ended().items())
        return [result if isinstance(result, Ended) else Ended(number + 1, "killed") for number, result in results]


def _run(task: Task, cache: dict[Any, Any]) -> Ended:
    return run_share(task, cache, task.rank)


class TorchrunWorkers:
    """Ranks 1, 2, ... of a launch, as their leader sees them."""

    def __init__(self) -> None:
        self._store = shared_store()
        self._number = -1
        self._working: set[int] = set()

    def submit(self, tasks: Sequence[Task]) -> None:
        """Puts all tasks into the store."""
        self._number += 1
        self._working = {task.rank for task in tasks}
        self._store.set(f"task/{self._number}", json.dumps([task.as_json() for task in tasks]))

    def shares(self) -> list[Ended]:
        """The shares that ended since the last call. Does not wait."""
        keys = {rank: f"ended/{self._number}/{rank}" for rank in sorted(self._working)}
        ended = {rank: key for rank, key in keys.items() if self._store.check([key])}
        self._working -= set(ended)
        return [Ended(**json.loads(self._store.get(key))) for key in ended.values()]

    def stop(self) -> None:
        """Asks the ranks to save what they have."""
        self._store.set("stop", "1")

    def close(self) -> None:
        """Lets the ranks end; units that follow are the leader's alone."""
        if (launch := launched()) is not None:
            self._store.set(f"task/{self._number + 1}", _END)
            launch.ended = True


Workers = LocalWorkers | TorchrunWorkers


@cache
def torchrun_workers() -> TorchrunWorkers:
    """The other ranks of this launch."""
    return TorchrunWorkers()


def led(work: Callable[[], int]) -> int:
    """Runs ``work`` in a process that is alone or leads; serves the leader in any other. Returns the exit status."""
    launch = claim()
    if launch is None:
        return work()
    if launch.rank:
        return _serve(launch)
    try:
        return work()
    finally:
        torchrun_workers().close()


def _serve(launch: Launch) -> int:
    """Runs tasks until the leader has no more. Returns the exit status."""
    signals.install()
    store = shared_store()
    threading.Thread(target=_hear_stop, args=(store,), daemon=True, name="hear-stop").start()
    cache: dict[Any, Any] = {}
    number = 0
    while True:
        message = _next(store, f"task/{number}")
        if message is None and not signals.requested():
            return 1  # the leader is gone
        if message is None or message == _END:
            return 0
        task = Task.from_json(json.loads(message)[launch.rank - 1])
        ended = run_share(task, cache, launch.local_rank)
        store.set(f"ended/{number}/{launch.rank}", json.dumps(asdict(ended)))
        number += 1


def _next(store: Any, key: str) -> str | None:
    """The value once it is set; None where the leader is gone or a stop was requested."""
    while not signals.requested():
        try:
            if store.check([key]):
                return str(store.get(key).decode())
            store.wait([key], _WAIT)
        except RuntimeError as error:  # DistStoreError, DistNetworkError
            if "imeout" not in str(error) and "imed out" not in str(error):
                return None
    return None


def _hear_stop(store: Any) -> None:
    """Requests a stop here when the leader asks all ranks to stop; ends with the leader."""
    clone = store.clone() if hasattr(store, "clone") else store
    with suppress(RuntimeError):
        while not signals.requested():
            time.sleep(1.0)
            if clone.check(["stop"]):
                signals.request("the leading rank")
