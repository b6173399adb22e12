"""What training tells step by step, for benchmarks that watch it from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mechstudy.core.progress import NullProgress


class StepProgress(NullProgress):
    """Calls ``told`` with the steps done: first those of the checkpoint, then after every step."""

    def __init__(self, told: Callable[[int], None]) -> None:
        super().__init__()
        self._told = told

    @contextmanager
    def bar(self, *_: Any, done: int = 0, **__: Any) -> Iterator[Any]:
        self._told(done)
        yield _Steps(self._told, done)


class _Steps:
    def __init__(self, told: Callable[[int], None], done: int) -> None:
        self._told, self._done = told, done

    def advance(self, n: int = 1, **info: Any) -> None:
        self._done += n
        self._told(self._done)
