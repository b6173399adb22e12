"""What the training workers share: the task, its rows in order, the answer. Torch and safetensors only."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

READ = 4_096


@dataclass(frozen=True)
class Task:
    """One training: `benchmarks.contenders` writes it as JSON, a worker reads it.

    Attributes:
        train, held_out: safetensors files; held_out None: nothing is reconstructed.
        site: the tensor in them.
        architecture: topk, batchtopk or matryoshka (over batchtopk, of these prefixes).
        recipe: "own": the library's defaults, as far as a run of this length allows; "ours": its own method with the
            numbers below.
        lr, warmup, decay, threshold_rate, dead_after_rows: mechstudy's for a run of this length (steps, rows).
        precision: of everybody: float32, or bfloat16 (autocast).
    """

    train: str
    held_out: str | None
    site: str
    n_rows: int
    batch: int
    architecture: str
    n_features: int
    k: int
    prefixes: list[int]
    recipe: str
    lr: float
    warmup: int
    decay: int
    threshold_rate: float
    dead_after_rows: int
    precision: str
    seed: int
    out: str

    @classmethod
    def from_arguments(cls) -> Task:
        return cls(**json.loads(Path(sys.argv[1]).read_text()))

    @property
    def steps(self) -> int:
        return self.n_rows // self.batch

    @property
    def folder(self) -> Path:
        return Path(self.out)

    def rows(self) -> Tensor:
        """The training rows [n_rows, d], as stored."""
        with safe_open(self.train, "pt") as opened:
            return opened.get_slice(self.site)[: self.n_rows]

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bfloat16")


class Batches:
    """Rows in order, float32 copies, over and over; iterating begins at the first."""

    def __init__(self, rows: Tensor, batch: int) -> None:
        self.rows, self.batch = rows, batch
        self.d_in = self.d_out = rows.shape[1]

    def __iter__(self) -> Iterator[Tensor]:
        return self.at(0)

    def at(self, step: int) -> Iterator[Tensor]:
        per_epoch = len(self.rows) // self.batch
        while True:
            first = step % per_epoch * self.batch
            yield self.rows[first : first + self.batch].to(torch.float32, copy=True)
            step += 1


@torch.no_grad()
def answer(task: Task, seconds: float, reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]], **facts: Any) -> None:
    """Write held-out reconstructions, and print the result as a line of JSON.

    Args:
        reconstruct: x [n, d] -> (reconstruction [n, d], active [n, F] bool), as the library does at inference.
    """
    if task.held_out is not None:
        with safe_open(task.held_out, "pt") as opened:
            rows = opened.get_tensor(task.site)
        parts, fired, active = [], torch.zeros(task.n_features, dtype=torch.int64), 0
        for first in range(0, len(rows), READ):
            y_hat, on = reconstruct(rows[first : first + READ].float())
            parts.append(y_hat.float())
            fired += on.sum(0)
            active += int(on.sum())
        save_file({"reconstruction": torch.cat(parts)}, task.folder / "reconstruction.safetensors")
        facts |= {"l0": active / len(rows), "dead_share": float((fired == 0).double().mean())}
    print(json.dumps({"seconds": seconds, **facts}))


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._began
