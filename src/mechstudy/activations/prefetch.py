"""Work done ahead of its use, in a thread that ends when nobody asks any more."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
_DONE = object()


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The items in their order, up to ``depth`` of them made before they are asked for.

    Errors of the items' making are raised where the item would have come. The thread ends when this iterator is
    closed or let go.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def deliver(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        try:
            for item in items:
                if not deliver((item, None)):
                    return
            deliver((_DONE, None))
        except BaseException as error:  # handed to the thread that asked for the item
            deliver((None, error))

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _DONE:
                return
            yield item
    finally:
        stop.set()
        thread.join()
        close = getattr(items, "close", None)
        if close is not None:
            close()
