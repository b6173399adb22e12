"""What the sampler costs: the same work with and without it, in turn, and the sampler's own CPU seconds.

The work is a loop of matrix products of fixed count, as a unit's entry would be. Pairs alternate in order, so that a
machine that becomes slower slows both; the result is the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.execution.monitor.sampler import monitored
from mechstudy.usage.record import read_usage
from mechstudy.usage.summary import use_of


def work(n: int) -> tuple[float, float]:
    """Wall and process CPU seconds of ``n`` products."""
    a = np.ones((512, 512), dtype=np.float32)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(n):
        a @ a
    return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one run, about")
    parser.add_argument("--interval", type=float, default=1.0)
    asked = parser.parse_args()
    n = 50
    n = max(1, int(n * asked.seconds / work(n)[0]))
    walls: list[float] = []
    cpus: list[float] = []
    own: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "unit.usage.jsonl"
        for pair in range(asked.pairs):
            times = {}
            for watched in (True, False) if pair % 2 else (False, True):
                how = {"unit": "bench", "phase": "train", "device": "cpu", "threads": 1, "seconds": asked.interval}
                with monitored(file, **how) if watched else nullcontext():  # type: ignore[arg-type]
                    times[watched] = work(n)
            use = use_of(read_usage(file))
            assert use is not None
            own.append(use.own / use.seconds)
            walls.append(times[True][0] / times[False][0] - 1)
            cpus.append(times[True][1] / times[False][1] - 1)
    result: dict[str, Any] = {
        "pairs": asked.pairs,
        "interval_seconds": asked.interval,
        "wall_overhead_median": statistics.median(walls),
        "wall_overhead_all": walls,
        "cpu_overhead_median": statistics.median(cpus),
        "own_cpu_share_median": statistics.median(own),
        "own_cpu_share_max": max(own),
    }
    print(f"wall time with the sampler: {result['wall_overhead_median']:+.2%} (median of {asked.pairs} pairs)")
    print(f"CPU time of the process: {result['cpu_overhead_median']:+.2%}")
    print(f"the sampler's own CPU time: {result['own_cpu_share_median']:.3%} of wall time, {max(own):.3%} at most")
    write(HERE / "results" / "monitoring.json", command="python -m benchmarks.monitoring", **result)


if __name__ == "__main__":
    main()
