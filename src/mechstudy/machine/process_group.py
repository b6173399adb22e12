"""Several processes that share the work of one unit, as a phase sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Ranks:
    """The processes that share a unit; this one is ``rank`` of ``size``. Here: a process alone.

    Rank 0 leads: it runs the unit's entry, and inside `helping` its own share. In the others the phase's share
    function runs, with the same spec and inputs and with what the leader has told them. They leave what they made in
    the unit's partial folder.
    """

    rank = 0
    size = 1
    told: Mapping[str, Any] = NOTHING
    peaks: Sequence[int] = ()  # of memory, in bytes, of the others' shares

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process' items: every ``size``-th one."""
        return items[self.rank :: self.size]

    def use_batch(self, tokens: int) -> None:
        """From now on the others' shares are cut into batches of so many tokens too."""

    @contextmanager
    def helping(self, told: Mapping[str, Any] = NOTHING, *, together: bool = False) -> Iterator[None]:
        """While the block runs the others do their shares; behind it all of them are done.

        ``together``: they talk to one another as they go, through torch.distributed. ``told`` is JSON.

        Raises:
            MechstudyError: a share failed (the rank is named), or its process was killed.
            Stopped: a stop was asked for; all of them have saved what they have.
        """
        yield


class Helping(Ranks):
    """As a process sees it that is not the leader."""

    def __init__(self, rank: int, size: int, told: Mapping[str, Any]) -> None:
        self.rank, self.size, self.told = rank, size, told


ALONE = Ranks()
