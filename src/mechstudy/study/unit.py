"""A unit: the smallest piece of work that is run, retried and resumed. It makes one artifact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from mechstudy.core.config import Config
from mechstudy.core.work import Estimate

if TYPE_CHECKING:
    from mechstudy.study.phases.base import Phase

Key = str | int | tuple[int, str]

# How long the payload of an artifact is kept; manifests and small files always are.
# keep: for good, and in archives. regenerate: until `mechstudy clean`; archives hold only the manifest.
# discard: the run deletes it as soon as no unit needs it any more.
Retention = Literal["keep", "regenerate", "discard"]


@dataclass(frozen=True)
class Input:
    """The unit whose artifact fills a role of the reader's inputs; ``key`` distinguishes units of one role."""

    role: str
    unit: str
    key: Key | None = None


@dataclass(frozen=True)
class Unit:
    """One node of a study's DAG.

    ``spec`` holds everything that changes the bytes of the artifact, and nothing else. ``gates`` name units whose
    verdict can stop this one. ``behaviour``, ``layer`` and ``variant`` are the unit's subject. Units of a lower
    ``wave`` run first: to save disk, layers are captured and trained wave by wave. ``retention`` is how long the
    payload is kept.
    """

    name: str
    phase: Phase[Any, Any]
    spec: Config
    inputs: tuple[Input, ...] = ()
    gates: tuple[str, ...] = ()
    behaviour: str | None = None
    layer: int | None = None
    variant: str | None = None
    wave: int = 0
    retention: Retention = "keep"
    estimate: Estimate = field(default_factory=Estimate)

    @cached_property
    def canonical_spec(self) -> dict[str, Any]:
        """The spec as plain JSON, as the artifact's id and manifest hold it."""
        return self.spec.canonical()

    @property
    def key(self) -> Key | None:
        """What distinguishes it from other units of its phase: its behaviour, or its layer and variant."""
        if self.layer is not None and self.variant is not None:
            return (self.layer, self.variant)
        return self.behaviour if self.layer is None else self.layer

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the units whose artifacts this one reads, in order."""
        return tuple(dict.fromkeys(item.unit for item in self.inputs))


def payload_of(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The file names that match, sorted (``*`` also crosses folders)."""
    wanted = tuple(patterns)
    return sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted))
