"""Byte identity after kill -9: every architecture and kind, killed at a random moment of a random step, then resumed.

A process of its own trains a small dictionary with a checkpoint every few steps and says when a step is done; it is
killed with SIGKILL during a random one (checkpoint writes are part of a step), and started again until it ends. The
sha256 of its saved files is compared with that of a training that nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import write
from benchmarks.peers import HERE
from benchmarks.steps import StepProgress
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.trainer import train

KINDS = ("sae", "transcoder", "skip_transcoder")
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "topk": {"activation": "topk"},
    "batchtopk": {"activation": "batchtopk"},
    "relu l1": {"activation": "relu", "penalty": "l1"},
    "relu sqrt": {"activation": "relu", "penalty": "sqrt"},
    "relu tanh": {"activation": "relu", "penalty": "tanh"},
    "gated l1": {"activation": "gated", "penalty": "l1"},
    "jumprelu l0": {"activation": "jumprelu", "penalty": "l0"},
    "jumprelu tanh": {"activation": "jumprelu", "penalty": "tanh"},
    "matryoshka topk": {"activation": "topk", "matryoshka": True},
    "matryoshka batchtopk": {"activation": "batchtopk", "matryoshka": True},
    "matryoshka jumprelu": {"activation": "jumprelu", "matryoshka": True},
}
STEP = "step "


@dataclass(frozen=True)
class Trial:
    """One small training."""

    kind: str
    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 40
    checkpoint_every: int = 3
    batch: int = 128
    width: int = 48
    precision: str = "float32"

    @classmethod
    def of(cls, kind: str, architecture: str, **numbers: Any) -> Trial:
        return cls(kind, architecture, ARCHITECTURES[architecture], **numbers)

    def save(self, folder: Path, checkpoint: Path | None, progress: Progress | None = None) -> None:
        """Train, from the checkpoint where there is one, and save the dictionary into the folder."""
        cfg = DictionaryConfig(kind=self.kind, expansion=4, k=6, **self.options)
        recipe = TrainConfig(
            steps=self.steps, batch_size=self.batch, checkpoint_every=self.checkpoint_every, precision=self.precision,
            tensorboard=False,
        )  # fmt: skip
        train(cfg, recipe, _Rows(self), checkpoint=checkpoint, progress=progress).save(folder)


class _Rows:
    """Random rows, and a target that depends on them."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.d_in = self.d_out = trial.width
        draw = torch.Generator().manual_seed(1)
        self._features = torch.randn(3 * self.d_in, self.d_in, generator=draw)
        self._map = torch.randn(self.d_in, self.d_in, generator=draw) / self.d_in**0.5

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        step = start
        while True:
            draw = torch.Generator().manual_seed(1_000 + step)
            on = torch.rand(self.trial.batch, len(self._features), generator=draw)
            x = (on * (on > 0.95)) @ self._features + 0.3
            yield x, x if self.trial.kind == "sae" else (x @ self._map).relu()
            step += 1


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def killed_and_resumed(trial: Trial, folder: Path, chance: random.Random, kills: int = 1) -> list[tuple[int, int]]:
    """Train in processes that are killed ``kills`` times.

    Returns:
        of every kill, the steps done when it came and those of the checkpoint that the next process began with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trial.json").write_text(json.dumps(asdict(trial)))
    moments = sorted(chance.sample(range(trial.checkpoint_every, trial.steps * 3 // 4), kills))
    begun, done = [], []
    for moment in [*moments, None]:
        first, last = _run(folder, moment, chance)
        begun.append(first)
        done.append(last)
    return list(zip(done[:-1], begun[1:], strict=True))


def _run(folder: Path, kill_at: int | None, chance: random.Random) -> tuple[int, int]:
    """Start; kill at a random moment of the step after ``kill_at``. The steps done at its begin and at its end.

    Raises:
        SystemExit: it failed by itself, or ended before it could be killed.
    """
    command = [sys.executable, "-m", "benchmarks.resume", "--child", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    assert process.stdout is not None
    told: list[int] = []
    before = length = time.perf_counter()
    for line in process.stdout:
        if not line.startswith(STEP):
            continue
        now = time.perf_counter()
        length, before = now - before, now
        told.append(int(line.removeprefix(STEP)))
        if kill_at is not None and len(told) > 1 and told[-1] >= kill_at:  # steps it still does are read too
            time.sleep(chance.uniform(0, length))
            process.kill()
    process.stdout.close()
    code = process.wait()
    if code != (0 if kill_at is None else -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command)} ended with {code}, killed at {kill_at}")
    return told[0], told[-1]


def check(trial: Trial, folder: Path, chance: random.Random, kills: int = 1) -> dict[str, Any]:
    """Both trainings, and whether their files are the same bytes."""
    trial.save(folder / "undisturbed", None)
    kills_at = killed_and_resumed(trial, folder / "killed", chance, kills)
    files = digests(folder / "undisturbed")
    return {
        "kind": trial.kind,
        "architecture": trial.architecture,
        "killed_after": [done for done, _ in kills_at],
        "resumed_from": [begun for _, begun in kills_at],
        "identical": files == digests(folder / "killed" / "dictionary"),
        "files": files,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--kills", type=int, default=1, help="of each training")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, help="of the moments; default: a new one, printed")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "resume.json")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child is not None:
        trial = Trial(**json.loads((a.child / "trial.json").read_text()))
        trial.save(
            a.child / "dictionary",
            a.child / "checkpoint",
            StepProgress(lambda step: print(f"{STEP}{step}", flush=True)),
        )
        return
    seed = random.SystemRandom().randrange(10**6) if a.seed is None else a.seed
    print(f"seed of the moments: {seed}")
    chance = random.Random(seed)
    rows = []
    for architecture in a.architectures:
        for kind in a.kinds:
            trial = Trial.of(kind, architecture, steps=a.steps, precision=a.precision)
            with tempfile.TemporaryDirectory() as folder:
                row = check(trial, Path(folder), chance, a.kills)
            rows.append(row)
            moments = ", ".join(f"{k} from {r}" for k, r in zip(row["killed_after"], row["resumed_from"], strict=True))
            verdict = "identical" if row["identical"] else "DIFFERENT"
            print(f"{architecture:<22} {kind:<16} killed after step, resumed from: {moments:<14} {verdict}", flush=True)
    same = sum(row["identical"] for row in rows)
    print(f"bar (byte-identical): {same} of {len(rows)}: {'reached' if same == len(rows) else 'MISSED'}")
    write(a.out, seed=seed, steps=a.steps, kills=a.kills, precision=a.precision, trials=rows)
    sys.exit(same < len(rows))


if __name__ == "__main__":
    main()
