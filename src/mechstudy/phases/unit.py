"""A unit: the smallest thing that is run, retried and resumed. It yields one artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Estimate:
    """What a unit will need, from shapes alone. Bytes are exact where ``exact`` says so; FLOPs count
    multiply-adds twice."""

    bytes_on_disk: int = 0
    bytes_in_memory: int = 0
    flops: float = 0.0
    exact: bool = False
    note: str = ""
    shapes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """One node of the DAG.

    ``spec`` holds everything that changes the bytes of the artifact, and nothing else; ``inputs`` maps a
    label to the name of the unit whose artifact it is. ``gates`` name baseline units: where one has failed
    its gate, this unit is not run. With ``optional_inputs`` the unit runs on whatever inputs came to be.
    ``discard_patterns`` are the files deleted once every consumer has its artifact, when ``retention`` says so.
    """

    name: str
    phase: str
    version: int
    spec: Mapping[str, Any]
    inputs: Mapping[str, str]
    entry: str
    gates: tuple[str, ...] = ()
    optional_inputs: bool = False
    retention: Literal["keep", "discard"] = "keep"
    discard_patterns: tuple[str, ...] = ()
    estimate: Estimate = Estimate()
