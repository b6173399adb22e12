"""Milliseconds per optimisation step of TopK and BatchTopK autoencoders, ours and the peers', in one run.

Our own peak memory is a row of its own, in MB.

Every round runs each contender once in a process of its own, in turn; the table gives medians over the rounds. Rows
are random: the time of a step does not depend on them. Peers run in float32 and under bfloat16 autocast, and
the faster counts; ours chooses by itself.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from benchmarks.contenders import write
from benchmarks.peers import HERE, PEERS, run_worker

SHAPES = {"smollm2": (576, 4608, 32, 4096, 6), "specification": (3584, 14336, 32, 256, 6)}  # d, F, k, batch, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--only", choices=("mechstudy", *PEERS), action="append")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "step_time.json")
    a = parser.parse_args()
    contenders = a.only or ("mechstudy", *PEERS)
    results = {}
    for shape in a.shape or SHAPES:
        numbers: dict[tuple[str, str], list[float]] = defaultdict(list)
        for _ in range(a.rounds):
            for name in contenders:
                for line in run_worker(name, "step", *SHAPES[shape]):
                    unit = "ms" if "ms" in line else "mb"
                    numbers[f"{name} {line['what']}", unit].append(line[unit])
        results[shape] = {
            what: {f"median_{unit}": statistics.median(values), unit: values}
            for (what, unit), values in numbers.items()
        }
        print(f"\n{shape}: d, F, k, batch, steps = {SHAPES[shape]}")
        for what, found in sorted(results[shape].items(), key=lambda item: item[1].get("median_ms", 0.0)):
            number, unit = (found["median_ms"], "ms") if "median_ms" in found else (found["median_mb"], "MB")
            print(f"  {what:<50} {number:8.1f} {unit}")
    write(a.out, rounds=a.rounds, shapes=results)


if __name__ == "__main__":
    main()
