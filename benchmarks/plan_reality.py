"""Plan against reality, phase by phase: storage, memory and wall time of a finished run, and the bars.

First `mechstudy validate STUDY --out RUN`, on a quiet machine, then `mechstudy run STUDY --out RUN`, then this. The
plan is the one that `mechstudy plan` gave after validate and before anything ran.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.planning.opened_study import open_study
from mechstudy.runner.cost import Cost, cost_of, whole_plan
from mechstudy.runner.study_run import run_of
from mechstudy.study.run_folder import RunFolder

MEMORY_BAR, TIME_BAR = 0.15, 0.25


def show(cost: Cost) -> None:
    """A row per phase, then the total."""
    print(
        f"{'phase':<10} {'planned':>9} {'took':>9} {'ratio':>6}   {'memory':>9} {'peak':>9} {'ratio':>6}   exact files"
    )
    for phase in [*cost.phases, cost.total]:
        time = f"{phase.time_ratio:.2f}" if phase.time_ratio else "-"
        memory = f"{phase.memory_ratio:.2f}" if phase.memory_ratio else "-"
        print(
            f"{phase.phase:<10} {duration(phase.planned_seconds):>9} {duration(phase.seconds):>9} {time:>6}   "
            f"{human(phase.planned_peak_bytes):>9} {human(phase.peak_bytes):>9} {memory:>6}   "
            f"{phase.payload_files - phase.payload_wrong} of {phase.payload_files}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--run", type=Path, help="the run's folder; default: runs/<name>")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "plan_reality.json")
    a = parser.parse_args()
    opened = open_study(a.study, a.sets, out=a.run)
    cost = cost_of(run_of(opened), slurm=False)
    if cost.total.done < cost.total.units:
        sys.exit(f"{cost.total.done} of {cost.total.units} units are done: run the study first")
    if cost.calibration is None:
        sys.exit(f"no pilots of this machine in {opened.folder}/validate.json: mechstudy validate {a.study} first")
    show(cost)
    low, high = whole_plan(run_of(opened)).interval
    wall = float(RunFolder(opened.folder).read_summary().get("wall_seconds") or cost.total.seconds)
    planned = cost.total.planned_seconds
    time, memory = wall / planned, cost.total.memory_ratio or 0.0
    wrong = cost.total.payload_wrong
    reached = {
        "storage": (wrong == 0, f"{cost.total.payload_files - wrong} of {cost.total.payload_files} files exact", "all"),
        "memory": (abs(memory - 1) <= MEMORY_BAR, f"{memory:.3f} of the plan", f"within {MEMORY_BAR:.0%}"),
        "wall time": (
            abs(time - 1) <= TIME_BAR,
            f"{duration(wall)} for {duration(planned)} [{duration(low)}, {duration(high)}], {time:.3f}",
            f"within {TIME_BAR:.0%}",
        ),
    }
    for name, (good, text, bar) in reached.items():
        print(f"{name:<10} {text} (bar: {bar}): {'reached' if good else 'MISSED'}")
    for name, sizes in cost.wrong.items():
        print(f"  {name}: planned {sizes[0]:,}, is {sizes[1]}")
    write(a.out, options={"study": a.study.name, "set": a.sets}, cost=cost.as_json(), wall_seconds=wall,
          interval=[low, high], reached={name: good for name, (good, _, _) in reached.items()})  # fmt: skip


if __name__ == "__main__":
    main()
