"""Several processes that share the work of one unit, as a phase sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")
NOTHING: Mapping[str, Any] = MappingProxyType({})


class ProcessGroup:
    """The processes that share a unit; this one is ``rank`` of ``size``. The base class is a process alone.

    Rank 0 leads: it runs the phase's `run`, and inside `sharing` its own share. The others run the phase's `share`
    with the same spec and inputs, and with what the leader has ``broadcast``. They write into the unit's partial
    folder.
    """

    rank = 0
    size = 1
    broadcast: Mapping[str, Any] = NOTHING
    peaks: Sequence[int] = ()  # peak memory of the others' shares, in bytes

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process' items: every ``size``-th one."""
        return items[self.rank :: self.size]

    def use_batch(self, tokens: int) -> None:
        """From now on the others' shares use batches of this many tokens."""

    @contextmanager
    def sharing(self, broadcast: Mapping[str, Any] = NOTHING, *, together: bool = False) -> Iterator[None]:
        """The others work on their shares while the block runs; when it ends, all shares are done.

        Args:
            broadcast: JSON that every process receives.
            together: the processes exchange tensors through torch.distributed.

        Raises:
            MechstudyError: a share failed (the rank is named), or its process was killed.
            Stopped: a stop was requested; every process has saved its progress.
        """
        yield


class Worker(ProcessGroup):
    """The group as a process other than the leader sees it."""

    def __init__(self, rank: int, size: int, broadcast: Mapping[str, Any]) -> None:
        self.rank, self.size, self.broadcast = rank, size, broadcast


ALONE = ProcessGroup()
