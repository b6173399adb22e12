"""Ranks started by torchrun: one command in every process, of which the first leads and the others are its workers.

``torchrun --nproc-per-node 2 -m mechstudy capture study.yaml``. Tasks and how they ended go through torchrun's own
key-value store, as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.runner.processes.messages import Ended, Task

END = "end"  # in place of a task: there are no more
_CONNECT = timedelta(seconds=60)


@dataclass(frozen=True)
class Launch:
    """What torchrun set for this process: rank of size, and where the store is (``hosted``: by torchrun itself)."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    hosted: bool


_launch: Launch | None = None


def launched() -> Launch | None:
    """The launch that `claim` read; None where torchrun started no others, or they have ended."""
    return None if _launch is None or (_launch.rank == 0 and workers(_launch).gone) else _launch


def started() -> bool:
    """Whether torchrun started this process."""
    return _launch is not None


def claim(environment: MutableMapping[str, str] = os.environ) -> Launch | None:
    """Takes torchrun's variables out of the environment, where libraries would wait for other ranks."""
    global _launch
    size = int(environment.get("WORLD_SIZE", "1"))
    if _launch is None and size > 1 and "RANK" in environment and "MASTER_ADDR" in environment:
        _launch = Launch(
            rank=int(environment.pop("RANK")),
            size=int(environment.pop("WORLD_SIZE")),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", str(size))),
            host=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    return _launch


@cache
def shared_store() -> Any:
    """The store all ranks see."""
    import torch

    distributed: Any = torch.distributed
    assert _launch is not None
    try:
        store = distributed.TCPStore(
            _launch.host, _launch.port, is_master=_launch.rank == 0 and not _launch.hosted, timeout=_CONNECT,
            wait_for_workers=False,
        )  # fmt: skip
    except RuntimeError as error:
        raise MechstudyError(
            "the ranks of this run do not find one another",
            where=f"{_launch.host}:{_launch.port}",
            facts={"reason": str(error).splitlines()[0]},
            fix="start it with torchrun, or without: --world-size N starts ranks itself",
        ) from error
    return distributed.PrefixStore("mechstudy", store)


@cache
def workers(launch: Launch) -> TorchrunWorkers:
    """The other ranks."""
    return TorchrunWorkers(launch)


_meetings = 0


def meeting_place() -> str:
    """A new name in the store at which ranks that exchange tensors meet."""
    global _meetings
    _meetings += 1
    return f"store:meeting/{_meetings}"


class TorchrunWorkers:
    """Ranks 1, 2, ... as their leader sees them."""

    def __init__(self, launch: Launch) -> None:
        self.n = launch.size - 1
        self._store = shared_store()
        self._number = -1
        self._working: set[int] = set()
        self.gone = False

    def submit(self, tasks: Sequence[Task]) -> None:
        """Puts all tasks into the store."""
        self._number += 1
        self._working = {task.rank for task in tasks}
        self._store.set(f"task/{self._number}", json.dumps([task.as_json() for task in tasks]))

    def ended(self) -> list[Ended]:
        """The shares that ended since the last call."""
        shares = []
        for rank in sorted(self._working):
            key = f"ended/{self._number}/{rank}"
            if self._store.check([key]):
                shares.append(Ended(**json.loads(self._store.get(key))))
                self._working.discard(rank)
        return shares

    def stop(self) -> None:
        """Asks the ranks to save what they have."""
        self._store.set("stop", "1")

    def close(self) -> None:
        """Lets the ranks end; units that follow are the leader's alone."""
        if not self.gone:
            self._store.set(f"task/{self._number + 1}", END)
        self.gone = True
