"""Seconds from `mechstudy graph PROMPT` to its page, in a process of its own, with the demo's model and neurons.

    python -m benchmarks.one_prompt [--rounds 3]

Medians of rounds: the clock's seconds of the whole process, start and imports included, those of the CPU, and those of
its stages as the command prints them. The model is fetched before. The bar is 15 s of the clock on two cores; on a
machine with other work the CPU's seconds and the load say what the clock's are worth.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import mechstudy as ms
from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.cli.one_prompt import DEMO

BAR = 15.0
PROMPT = ("The keys to the cabinet", "--answer", " are", "--wrong-answer", " is")


def cpu_seconds() -> float:
    """Of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(page: Path) -> dict[str, Any]:
    """One command: seconds of the process and of its stages, and the page's size."""
    began, cpu = time.perf_counter(), cpu_seconds()
    command = [sys.executable, "-m", "mechstudy", "graph", *PROMPT, "--out", str(page)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - began
    [line] = re.findall(r"^time: (.*);", printed, re.MULTILINE)
    stages = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+) s", line)}
    used = cpu_seconds() - cpu
    return {
        "seconds": seconds,
        "cpu_seconds": used,
        "load": os.getloadavg()[0],
        "stages": stages,
        "page_bytes": page.stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ms.load_model(DEMO)  # fetched once
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measure(Path(folder) / "page.html") for _ in range(options.rounds)]
    stages = {name: median(one["stages"][name] for one in rounds) for name in rounds[0]["stages"]}
    seconds, cpu, load = ([round(one[name], 1) for one in rounds] for name in ("seconds", "cpu_seconds", "load"))
    print(f"{median(seconds)} s (bar {BAR} s) {seconds}, of the CPU {median(cpu)} {cpu}; load {load}; stages {stages}")
    write(
        HERE / "results" / "one_prompt.json",
        bar=BAR,
        seconds=median(seconds),
        seconds_of_rounds=seconds,
        cpu_seconds=median(cpu),
        load=load,
        stages=stages,
        page_bytes=rounds[0]["page_bytes"],
    )


if __name__ == "__main__":
    main()
