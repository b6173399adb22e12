"""What processes started by torchrun do: the first leads, the others run its tasks until there are no more."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from mechstudy.core import signals
from mechstudy.runner.processes.messages import Task
from mechstudy.runner.processes.share import run_share
from mechstudy.runner.processes.torchrun import END, Launch, claim, shared_store, workers

_WAIT = timedelta(seconds=1)


def led(work: Callable[[], int]) -> int:
    """Runs ``work`` in a process that is alone or leads; serves the leader in any other. Returns the exit status."""
    launch = claim()
    if launch is None:
        return work()
    if launch.rank:
        return serve(launch)
    try:
        return work()
    finally:
        workers(launch).close()


def serve(launch: Launch) -> int:
    """Runs tasks until the leader has no more. Returns the exit status."""
    signals.install()
    store = shared_store()
    _hear_stop(store)
    cache: dict[Any, Any] = {}
    number = 0
    while True:
        message = _next(store, f"task/{number}")
        if message is None and not signals.requested():
            return 1  # the leader is gone
        if message is None or message == END:
            return 0
        task = Task.from_json(json.loads(message)[launch.rank - 1])
        ended = run_share(task, cache, launch.local_rank)
        store.set(f"ended/{number}/{launch.rank}", json.dumps(ended.as_json()))
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
    """Requests a stop here when the leader asks all ranks to stop."""

    def listen() -> None:
        clone = store.clone() if hasattr(store, "clone") else store
        while not signals.requested():
            time.sleep(1.0)
            try:
                if clone.check(["stop"]):
                    signals.request("the leading rank")
            except RuntimeError:
                return

    threading.Thread(target=listen, daemon=True, name="hear-stop").start()
