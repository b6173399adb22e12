"""A timetable of units that run side by side, each as soon as its inputs exist and a place is free."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timetable:
    """``seconds`` from the first start to the last end, the ``most`` units at a time, and each unit's end."""

    seconds: float
    most: int
    ends: Mapping[str, float]


def timetable(
    durations: Mapping[str, float], upstream: Callable[[str], Iterable[str]], width: int | None = None
) -> Timetable:
    """The timetable of units, at most ``width`` at a time; None: as many as can run.

    Args:
        durations: unit -> seconds of the units to run, inputs before consumers.
        upstream: the units that a unit waits for; those without a duration are done.
    """
    ends: dict[str, float] = {}
    starts: dict[str, float] = {}
    free: list[float] = [0.0] * (width or 0)
    for name, seconds in durations.items():
        ready = max((ends[source] for source in upstream(name) if source in ends), default=0.0)
        start = ready if width is None else max(ready, heapq.heappop(free))
        starts[name], ends[name] = start, start + seconds
        if width is not None:
            heapq.heappush(free, ends[name])
    return Timetable(max(ends.values(), default=0.0), _most([(starts[n], ends[n]) for n in durations]), ends)


def _most(spans: Sequence[tuple[float, float]]) -> int:
    """The largest number of spans that overlap."""
    events = sorted([(start, 1) for start, end in spans] + [(end, -1) for start, end in spans])
    most = now = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most
