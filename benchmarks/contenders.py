"""Trainings of several libraries on the same rows, each in a process of its own; finished ones are not run again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import HERE, python_of
from benchmarks.workers.common import Task
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig

LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "topk": ("mechstudy", "saelens", "sparsify", "dictionary_learning"),
    "batchtopk": ("mechstudy", "saelens", "dictionary_learning"),
    "matryoshka": ("mechstudy", "saelens", "dictionary_learning"),
}


@dataclass(frozen=True)
class Contender:
    """One library, architecture and recipe."""

    library: str
    architecture: str
    recipe: str

    def __str__(self) -> str:
        return f"{self.architecture} {self.library} ({self.recipe})"

    def task(self, out: Path, *, train: Path, held_out: Path | None, site: str, n_rows: int, batch: int,
             n_features: int, k: int, precision: str, seed: int) -> Task:  # fmt: skip
        """What its worker is told; recipe "ours" is mechstudy's for a run of this length."""
        recipe = TrainConfig(steps=max(1, n_rows // batch), batch_size=batch)
        cfg = DictionaryConfig(kind="sae", activation="batchtopk", d_sae=n_features, k=k, matryoshka=True)
        return Task(
            train=str(train),
            held_out=None if held_out is None else str(held_out),
            site=site,
            n_rows=n_rows,
            batch=batch,
            architecture=self.architecture,
            n_features=n_features,
            k=k,
            prefixes=list(cfg.prefixes(n_features)),
            recipe=self.recipe,
            lr=recipe.resolved_lr(n_features),
            warmup=recipe.resolved_warmup(),
            decay=round(recipe.steps * recipe.decay_share),
            threshold_rate=recipe.threshold_rate(),
            dead_after_rows=recipe.resolved_dead_after(),
            precision=precision,
            seed=seed,
            out=str(out),
        )


def contenders(architectures: Sequence[str], libraries: Sequence[str]) -> Iterator[Contender]:
    """Ours once, peers with their own recipe and with ours."""
    for architecture in architectures:
        for library in LIBRARIES[architecture]:
            if library in libraries:
                recipes = ("own",) if library == "mechstudy" else ("own", "ours")
                yield from (Contender(library, architecture, recipe) for recipe in recipes)


def run(contender: Contender, task: Task, *, fresh: bool = False) -> dict[str, Any]:
    """The worker's answer: kept in ``result.json`` of the task's folder, with the task it answers.

    Raises:
        SystemExit: the worker failed; it names the log.
    """
    kept = task.folder / "result.json"
    if not fresh and kept.exists():
        found = json.loads(kept.read_text())
        if found["task"] == asdict(task):
            return found["answer"]
    shutil.rmtree(task.folder, ignore_errors=True)
    task.folder.mkdir(parents=True)
    told, log = task.folder / "task.json", task.folder / "log.txt"
    told.write_text(json.dumps(asdict(task), indent=1))
    script = HERE / "workers" / f"{contender.library}_train.py"
    print(f"{contender}: {task.steps} steps of {task.batch} ...", end=" ", flush=True)
    began = time.perf_counter()
    with log.open("w") as stream:
        command = [str(python_of(contender.library)), str(script), str(told)]
        done = subprocess.run(command, stdout=stream, stderr=stream, check=False)
    lines = log.read_text().splitlines()
    if done.returncode:
        print("failed", flush=True)
        raise SystemExit(f"{script.name} failed, see {log}:\n" + "\n".join(lines[-15:]))
    answer = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    print(f"{answer['seconds']:.0f} s training, {time.perf_counter() - began:.0f} s in all", flush=True)
    kept.write_text(json.dumps({"task": asdict(task), "answer": answer}, indent=1))
    return answer


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    name = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}".strip(),
    }


def write(out: Path, **results: Any) -> None:
    """Results as JSON, with the machine and the command."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")


def _lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.exists() else []
