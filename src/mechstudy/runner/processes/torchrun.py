"""Ranks that torchrun started: one command in every process, of which the first leads and the others help.

``torchrun --nproc-per-node 2 -m mechstudy capture study.yaml``. Tasks and how they ended go through torchrun's own
key-value store, as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from mechstudy.core.errors import MechstudyError

_END = "end"
_WAIT = timedelta(seconds=1)
_CONNECT = timedelta(seconds=60)


@dataclass(frozen=True)
class Launch:
    """What torchrun told this process: rank of size, and where the store is (``hosted``: by torchrun itself)."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    hosted: bool


_launch: Launch | None = None


def launched() -> Launch | None:
    """What `claim` found; None where nobody started several processes, or the others have ended."""
    return None if _launch is None or (_launch.rank == 0 and helpers(_launch).gone) else _launch


def started() -> bool:
    """Whether torchrun started this process."""
    return _launch is not None


def claim(environment: MutableMapping[str, str] = os.environ) -> Launch | None:
    """Reads what torchrun says, and takes it out of the environment: libraries would wait there for other ranks."""
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


def led(work: Callable[[], int]) -> int:
    """Does the work where this process is alone or the first of several; helps with it where it is another one."""
    launch = claim()
    if launch is None:
        return work()
    if launch.rank:
        return serve(launch)
    try:
        return work()
    finally:
        helpers(launch).close()


@cache
def shared_store() -> Any:
    """The store all ranks see."""
    import torch

    assert _launch is not None
    try:
        store = torch.distributed.TCPStore(
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
    return torch.distributed.PrefixStore("mechstudy", store)


@cache
def helpers(launch: Launch) -> TorchrunHelpers:
    """The other ranks."""
    return TorchrunHelpers(launch)


_meetings = 0


def meeting_place() -> str:
    """A new name in the store, for ranks that talk to one another."""
    global _meetings
    _meetings += 1
    return f"store:meeting/{_meetings}"


class TorchrunHelpers:
    """Ranks 1, 2, ... as their leader sees them."""

    def __init__(self, launch: Launch) -> None:
        self.n = launch.size - 1
        self._store = shared_store()
        self._number = -1
        self._working: set[int] = set()
        self.gone = False

    def submit(self, tasks: Sequence[Any]) -> None:
        self._number += 1
        self._working = {task.rank for task in tasks}
        self._store.set(f"task/{self._number}", json.dumps([task.as_json() for task in tasks]))

    def ended(self) -> list[Any]:
        from mechstudy.runner.processes.task import Ended

        found = []
        for rank in sorted(self._working):
            key = f"ended/{self._number}/{rank}"
            if self._store.check([key]):
                found.append(Ended(**json.loads(self._store.get(key))))
                self._working.discard(rank)
        return found

    def stop(self) -> None:
        self._store.set("stop", "1")

    def close(self) -> None:
        """They end by themselves once they see it; units that follow are the leader's alone."""
        if not self.gone:
            self._store.set(f"task/{self._number + 1}", _END)
        self.gone = True


def serve(launch: Launch) -> int:
    """A helping rank's life: tasks until the leader has no more. Returns the exit status."""
    from mechstudy.core import signals as stopping
    from mechstudy.runner.processes.task import Task, do_share

    stopping.install()
    store = shared_store()
    _hear_stop(store)
    kept: dict[Any, Any] = {}
    number = 0
    while True:
        message = _next(store, f"task/{number}")
        if message is None and not stopping.requested():
            return 1  # the leader is gone
        if message is None or message == _END:
            return 0
        task = Task.from_json(json.loads(message)[launch.rank - 1])
        ended = do_share(task, kept, launch.local_rank)
        store.set(f"ended/{number}/{launch.rank}", json.dumps(ended.as_json()))
        number += 1


def _next(store: Any, key: str) -> str | None:
    """The value once it is set; None where the leader is gone or a stop was asked for."""
    from mechstudy.core import signals as stopping

    while not stopping.requested():
        try:
            if store.check([key]):
                return str(store.get(key).decode())
            store.wait([key], _WAIT)
        except RuntimeError as error:  # DistStoreError, DistNetworkError
            if "imeout" not in str(error) and "imed out" not in str(error):
                return None
    return None


def _hear_stop(store: Any) -> None:
    """Takes the leader's word that all are to stop for a request of one's own."""
    import threading
    import time

    from mechstudy.core import signals as stopping

    def listen() -> None:
        clone = store.clone() if hasattr(store, "clone") else store
        while not stopping.requested():
            time.sleep(1.0)
            try:
                if clone.check(["stop"]):
                    stopping.request("the leading rank")
            except RuntimeError:
                return

    threading.Thread(target=listen, daemon=True, name="hear-stop").start()
