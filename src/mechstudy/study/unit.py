"""A unit: the smallest thing that is run, retried and resumed. It yields one artifact, and says what it will need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mechstudy.core.sizes import ITEM_BYTES
from mechstudy.study.retention import Retention

WorkKind = Literal["forward", "train", "attribute", "sparse", "stream", "read", "write", "load", "pages"]


@dataclass(frozen=True)
class Work:
    """One kind of work of a unit.

    forward: dense products of the model; train: dense products of a dictionary; attribute: products of a graph's rows
    (FLOPs, multiply-adds counted twice). sparse: gathering and scattering rows; stream: arrays read or written from end
    to end (bytes of memory). read, write: bytes of disk. load: bytes of a model's weights, from disk to where it runs.
    pages: pages and figures of a report.

    ``dtype`` is that of the factors (``auto``: the faster of float32 and bfloat16), ``width`` the products' smaller
    side, ``calls`` how many blocks of the model are called, each of which costs a fixed time to launch.
    """

    kind: WorkKind
    amount: float
    dtype: str = "float32"
    width: int = 0
    calls: float = 0.0


@dataclass(frozen=True)
class Held:
    """Something that stays in memory for later units of the same process: ``count`` numbers of a dtype.

    ``touched`` of them are really read; a CPU maps a model's file, and what is not read takes no memory. ``stored`` is
    the file's dtype: loading in another has both in memory for a moment.
    """

    name: str
    count: int
    dtype: str = "float32"
    touched: int | None = None
    stored: str = "bfloat16"

    def bytes(self, auto: str = "float32") -> int:
        """Its bytes, where ``auto`` comes to be this dtype."""
        return self.count * ITEM_BYTES[auto if self.dtype == "auto" else self.dtype]


@dataclass(frozen=True)
class Estimate:
    """What a unit will need, from shapes alone.

    ``payload`` names files whose bytes are exact; ``bytes_on_disk`` is all of the artifact, and ``exact`` says that
    only small JSON beside the payload is not counted exactly. ``bytes_in_memory`` is the sum of what is held and the
    working set, without Python and torch themselves; FLOPs count multiply-adds twice.
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
        """What comes back from JSON (a submission to Slurm keeps its units so) is what went in."""
        holds = tuple(item if isinstance(item, Held) else Held(**item) for item in self.holds)
        work = tuple(item if isinstance(item, Work) else Work(**item) for item in self.work)
        object.__setattr__(self, "holds", holds)
        object.__setattr__(self, "work", work)

    @property
    def working_bytes(self) -> int:
        """The working set: what is let go when the unit ends."""
        return max(0, self.bytes_in_memory - sum(held.bytes() for held in self.holds))


@dataclass(frozen=True)
class Unit:
    """One node of the DAG.

    ``spec`` holds everything that changes the bytes of the artifact, and nothing else; ``inputs`` maps a
    label to the name of the unit whose artifact it is. ``gates`` name baseline units: where one has failed
    its gate, this unit is not run. With ``optional_inputs`` the unit runs on whatever inputs came to be.
    ``retention`` (phases.retention) says how long the payload is kept, the files that match ``discard_patterns``; a
    unit with ``reads_payload`` needs that of its inputs, the others only what stays.
    """

    name: str
    phase: str
    version: int
    spec: Mapping[str, Any]
    inputs: Mapping[str, str]
    entry: str
    gates: tuple[str, ...] = ()
    optional_inputs: bool = False
    retention: Retention = "keep"
    discard_patterns: tuple[str, ...] = ()
    reads_payload: bool = True
    estimate: Estimate = Estimate()
