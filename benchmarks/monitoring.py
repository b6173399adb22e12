"""What the sampler costs: the same work with and without it, in turn, and what each of its looks takes from the work.

The work is a loop of matrix products, as a unit's entry would be, on all threads. Two measures:

- *pairs*: the same number of products with and without the sampler, in alternating order, so that a machine that
  becomes slower slows both. The result is the median of the pairs' ratios with its interval (from the signs of the
  pairs, no shape assumed). Runs of a few seconds differ by a percent on the quietest machine, so it takes many pairs.
- *looks*: within the watched runs, the products that ran while a sample was taken, against their neighbours. What they
  took longer is what the sample cost the work: its CPU time, the core it needed, the caches it emptied, Python's lock.
  The same is done half a second later, where no look was, and subtracted. Slow drifts cancel; it takes few looks.

On a busy machine neither means much: only the sampler's own CPU seconds do.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.monitoring import sampler
from mechstudy.monitoring.record import Session, read_usage
from mechstudy.monitoring.sampler import Probe, monitored
from mechstudy.monitoring.summary import use_of

_AROUND = 8  # products before and after a look that say how long one takes undisturbed
_SIDE = np.ones((512, 512), dtype=np.float32)


def work(n: int) -> list[float]:
    """Times at which each of ``n`` products ended; the first number is when the first began."""
    ends = [time.perf_counter()]
    for _ in range(n):
        _SIDE @ _SIDE
        ends.append(time.perf_counter())
    return ends


@contextmanager
def looks() -> Iterator[list[tuple[float, float]]]:
    """Notes when each sample began and was written."""
    found: list[tuple[float, float]] = []
    add, read = sampler.UsageLog.add, Probe.read

    def noted_read(self: Probe) -> Any:
        found.append((time.perf_counter(), math.inf))
        return read(self)

    def noted_add(self: sampler.UsageLog, sample: Any) -> None:
        add(self, sample)
        found[-1] = (found[-1][0], time.perf_counter())

    Probe.read, sampler.UsageLog.add = noted_read, noted_add  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Probe.read, sampler.UsageLog.add = read, add  # type: ignore[method-assign]


def taken(ends: Sequence[float], found: Sequence[tuple[float, float]]) -> list[float]:
    """Seconds that each look took from the work: what the products it overlaps, and the next, took beyond the usual.

    The usual is the mean of those around them, without the longest and shortest quarter. The last look of a run, after
    the work, is left out.
    """
    seconds = [after - before for before, after in pairwise(ends)]
    lost = []
    for began, ended in found:
        if ended >= ends[-1]:
            continue
        first, last = bisect_left(ends, began) - 1, bisect_left(ends, ended) + 1
        first = max(0, first)
        inside = seconds[first:last]
        near = sorted([*seconds[max(0, first - _AROUND) : first], *seconds[last : last + _AROUND]])
        middle = near[len(near) // 4 : max(1, len(near) * 3 // 4)]
        if inside and middle:
            lost.append(sum(inside) - len(inside) * statistics.fmean(middle))
    return lost


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The interval of the median that holds whatever the distribution: between two of the sorted values."""
    ordered, n = sorted(values), len(values)
    low, tail = 0, 0.5**n
    while low + 1 < n // 2 and 2 * (tail + math.comb(n, low + 1) * 0.5**n) <= 1 - level:
        low += 1
        tail += math.comb(n, low) * 0.5**n
    return ordered[low], ordered[n - 1 - low]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=28)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one run, about")
    parser.add_argument("--interval", type=float, default=1.0, help="between samples, as compute.monitor_seconds")
    asked = parser.parse_args()
    work(50)  # warm
    probe = work(200)
    n = max(1, int(200 * asked.seconds / (probe[-1] - probe[0])))
    walls: list[float] = []
    own: list[float] = []
    lost: list[float] = []
    idle: list[float] = []
    watched_seconds, n_looks = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "unit.usage.jsonl"
        for pair in range(asked.pairs):
            times = {}
            for watched in (True, False) if pair % 2 else (False, True):
                session = Session("bench", "train", seconds=asked.interval)
                began = time.perf_counter()
                with looks() as found, monitored(file, session) if watched else nullcontext():
                    ends = work(n)
                times[watched] = time.perf_counter() - began  # its start and end too
                if watched:
                    lost.extend(taken(ends, found))
                    none = [(begun + asked.interval / 2, ended + asked.interval / 2) for begun, ended in found]
                    idle.extend(taken(ends, none))
                    n_looks += len(found)
                    watched_seconds += times[True]
            use = use_of(read_usage(file))
            assert use is not None
            own.append(use.own / use.seconds)
            walls.append(times[True] / times[False] - 1)
    low, high = median_interval(walls)
    per_look = statistics.fmean(lost) - statistics.fmean(idle)
    spread = math.sqrt(sum(statistics.variance(of) / len(of) for of in (lost, idle)))
    rate = n_looks / watched_seconds
    result: dict[str, Any] = {
        "pairs": asked.pairs,
        "seconds_of_a_run": asked.seconds,
        "interval_seconds": asked.interval,
        "wall_overhead_median": statistics.median(walls),
        "wall_overhead_median_95": [low, high],
        "wall_overhead_all": walls,
        "looks": len(lost),
        "look_seconds_mean": per_look,
        "look_seconds_mean_without_control": statistics.fmean(lost),
        "look_seconds_standard_error": spread,
        "look_share_of_wall": per_look * rate,
        "own_cpu_share_median": statistics.median(own),
        "own_cpu_share_max": max(own),
    }
    print(f"wall time with the sampler: {result['wall_overhead_median']:+.2%}, 95% interval {low:+.2%} to {high:+.2%} "
          f"(median of {asked.pairs} pairs)")  # fmt: skip
    print(f"a look takes {per_look * 1e3:.2f} +- {spread * 1e3:.2f} ms from the work ({len(lost)} looks, "
          f"{rate:.2f} a second): {per_look * rate:.3%} of wall time")  # fmt: skip
    print(f"the sampler's own CPU time: {result['own_cpu_share_median']:.3%} of wall time, {max(own):.3%} at most")
    write(HERE / "results" / "monitoring.json", command="python -m benchmarks.monitoring", **result)


if __name__ == "__main__":
    main()
