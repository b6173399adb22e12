"""The processes of this machine that share a unit: started once, kept for the units that follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mechstudy.runner.processes.messages import Ended, Task
from mechstudy.runner.processes.share import run_share
from mechstudy.runner.processes.spawned import Killed, SpawnedProcesses


class Workers(Protocol):
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


class LocalWorkers:
    """``n`` spawned processes, ranks 1 to n. Each keeps the models it has loaded."""

    def __init__(self, n: int, threads: int) -> None:
        self.n = n
        self._processes = SpawnedProcesses(n, threads, _run)
        self.stop, self.close = self._processes.stop, self._processes.close

    def submit(self, tasks: Sequence[Task]) -> None:
        """Gives each process its task."""
        for task in tasks:
            self._processes.send(task.rank - 1, task)

    def ended(self) -> list[Ended]:
        """The shares that ended since the last call."""
        results = self._processes.ended()
        return [
            Ended(number + 1, "killed") if isinstance(result, Killed | BaseException) else result
            for number, result in sorted(results.items())
        ]


_CACHE: dict[Any, Any] = {}  # of a spawned process: its loaded models


def _run(task: Task, _number: int) -> Ended:
    return run_share(task, _CACHE, task.rank)
