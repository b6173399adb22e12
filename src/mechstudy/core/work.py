"""What a unit of work needs: memory, disk and operations of each kind, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mechstudy.core.sizes import ITEM_BYTES

WorkKind = Literal["forward", "train", "attribute", "sparse", "stream", "read", "write", "load", "pages"]
_PRODUCTS = ("forward", "train", "attribute")


@dataclass(frozen=True)
class Work:
    """An amount of one kind of work.

    forward: dense products of the model; train: dense products of a dictionary; attribute: products of a graph's rows
    (FLOPs, multiply-adds counted twice). sparse: gathering and scattering rows; stream: arrays read or written from end
    to end (bytes of memory). read, write: bytes of disk. load: bytes of a model's weights, from disk to the device.
    pages: pages and figures of a report.

    ``dtype`` is that of the factors (``auto``: the faster of float32 and bfloat16), ``width`` the smaller side of the
    products, ``calls`` the number of block calls, each of which costs a fixed launch time.
    """

    kind: WorkKind
    amount: float
    dtype: str = "float32"
    width: int = 0
    calls: float = 0.0


@dataclass(frozen=True)
class Held:
    """Weights that stay in memory for later units of the same process: ``count`` numbers of a dtype.

    Only ``touched`` of them are read: a CPU maps a model's file, and pages that are not read take no memory. ``stored``
    is the dtype of the file: loading in another dtype briefly holds both.
    """

    name: str
    count: int
    dtype: str = "float32"
    touched: int | None = None
    stored: str = "bfloat16"

    def bytes(self, auto: str = "float32") -> int:
        """Bytes in memory, with ``auto`` resolved to the given dtype."""
        return self.count * ITEM_BYTES[auto if self.dtype == "auto" else self.dtype]


@dataclass(frozen=True)
class Estimate:
    """The needs of a unit.

    ``payload`` names files whose bytes are exact; ``bytes_on_disk`` covers the whole artifact, and ``exact`` says that
    only small JSON beside the payload is approximate. ``bytes_in_memory`` is what is held plus the working set,
    without Python and torch themselves.
    """

    bytes_on_disk: int = 0
    bytes_in_memory: int = 0
    flops: float = 0.0
    exact: bool = False
    note: str = ""
    shapes: Mapping[str, str] = field(default_factory=dict)
    payload: Mapping[str, int] = field(default_factory=dict)
    holds: tuple[Held, ...] = ()
    work: tuple[Work, ...] = ()

    def __post_init__(self) -> None:
        """Accepts the plain JSON of an estimate, so that it survives a round trip through a file."""
        holds = tuple(item if isinstance(item, Held) else Held(**item) for item in self.holds)
        work = tuple(item if isinstance(item, Work) else Work(**item) for item in self.work)
        object.__setattr__(self, "holds", holds)
        object.__setattr__(self, "work", work)

    @property
    def working_bytes(self) -> int:
        """The working set, which is freed when the unit ends."""
        return max(0, self.bytes_in_memory - sum(held.bytes() for held in self.holds))


def flops_of(work: tuple[Work, ...] | list[Work]) -> float:
    """Operations of all dense products among the work."""
    return sum(part.amount for part in work if part.kind in _PRODUCTS)
