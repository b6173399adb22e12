"""The batch that fits in memory, learned where one did not, so that the unit's next batches start with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Fitting:
    """What a unit has learned. ``tokens``: of the smallest batch that a batch too large was cut to; None before."""

    tokens: int | None = None

    def start(self, size: int, item_tokens: int) -> int:
        """The items to begin with where ``size`` of ``item_tokens`` tokens are asked for; at least one."""
        return size if self.tokens is None else max(1, min(size, self.tokens // item_tokens))

    def learn(self, size: int, item_tokens: int) -> None:
        """A batch of so many items fits, and a larger one did not."""
        tokens = size * item_tokens
        self.tokens = tokens if self.tokens is None else min(self.tokens, tokens)


_CURRENT: ContextVar[Fitting | None] = ContextVar("fitting", default=None)


@contextmanager
def fitting() -> Iterator[Fitting]:
    """What is learned inside the block, and used there by later batches."""
    found = Fitting()
    token = _CURRENT.set(found)
    try:
        yield found
    finally:
        _CURRENT.reset(token)


def current() -> Fitting:
    """The unit's; outside of one, a new one, so that nothing is carried from batch to batch."""
    return _CURRENT.get() or Fitting()
