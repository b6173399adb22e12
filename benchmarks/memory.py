"""Peak memory of training at the specification's shape: d = 3584, F = 14336, k = 32, 256 rows a batch.

A process of its own for each architecture takes a few steps. Its peak resident memory (ru_maxrss) is told, and what it
was after the imports; the difference is weights, gradients, optimizer, batch and whatever a step needs beside them.
"Finished" includes the dictionary that training hands back at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import write
from benchmarks.peers import HERE
from benchmarks.steps import StepProgress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.trainer import train

ARCHITECTURES = ("topk", "batchtopk", "jumprelu")
BAR_GB = 2.5


class Rows:
    """Random rows, one batch at a time: a `train.RowSource` that holds nothing."""

    def __init__(self, width: int, batch: int) -> None:
        self.d_in = self.d_out = width
        self.batch = batch

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        step = start
        while True:
            x = torch.randn(self.batch, self.d_in, generator=torch.Generator().manual_seed(step))
            yield x, x
            step += 1


def peak_gb() -> float:
    """The process's largest resident size so far."""
    unit = 1 if sys.platform == "darwin" else 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """Train here for a few steps."""
    before = peak_gb()
    cfg = DictionaryConfig(kind="sae", activation=a.child, d_sae=a.features, k=a.k)
    recipe = TrainConfig(
        steps=a.steps, batch_size=a.batch, precision=a.precision, tensorboard=False, dead_after_rows=a.dead_after_rows
    )
    after: list[float] = []
    progress = StepProgress(lambda step: after.append(peak_gb()))
    dictionary = train(cfg, recipe, Rows(a.width, a.batch), progress=progress)
    return {
        "base_gb": before,
        "peak_gb": after[-1],
        "peak_finished_gb": peak_gb(),
        "precision": dictionary.metadata["precision"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--width", type=int, default=3_584)
    parser.add_argument("--features", type=int, default=14_336)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--dead-after-rows", type=int, default=10_000_000,
        help="as in the specification's 50,000 steps; a few hundred shows what the auxiliary loss takes",
    )  # fmt: skip
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(measure(a)))
        return
    weights = 4 * (2 * a.width * a.features + a.width + a.features) / 1e9
    print(f"weights {weights:.2f} GB; with gradients and Adam's two moments {4 * weights:.2f} GB")
    print(f"{'':<12} {'after imports':>14} {'peak':>8} {'difference':>11} {'finished':>11}")
    found: dict[str, Any] = {}
    for name in a.architectures:
        command = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--child", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent)
        row = json.loads(done.stdout.splitlines()[-1])
        row["difference_gb"] = row["peak_gb"] - row["base_gb"]
        found[name] = row
        print(f"{name:<12} {row['base_gb']:>11.2f} GB {row['peak_gb']:>5.2f} GB {row['difference_gb']:>8.2f} GB"
              f" {row['peak_finished_gb'] - row['base_gb']:>8.2f} GB"
              f"  ({row['precision']})", flush=True)  # fmt: skip
    most = max(row["difference_gb"] for row in found.values())
    print(f"bar (difference at most {BAR_GB} GB): {most:.2f} GB: {'reached' if most <= BAR_GB else 'MISSED'}")
    options = {name: getattr(a, name) for name in ("width", "features", "k", "batch", "steps")}
    write(a.out, options=options, weights_gb=weights, found=found)


if __name__ == "__main__":
    main()
