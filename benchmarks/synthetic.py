"""Features found in known worlds, at equal samples: mechstudy against SAELens, BatchTopK and Matryoshka.

Two worlds: ours (dictionaries/synthetic.py) and SAELens' own synthetic data. Each world's rows are drawn once per seed
into a file, and everybody trains on exactly these, with as many latents as there are features and k = the world's L0.
All are scored by `mechstudy.dictionaries.evaluation.synthetic.score` on the same held-out rows;
SAELens' dictionaries are read from the folder that SAELens saves. SAELens runs with its own recipe and with our
learning rate, schedule and thresholds; the better mean counts, measure by measure.
The files take about 1.2 GB per world and seed, in build/synthetic.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.contenders import LIBRARIES, contenders, run, write
from benchmarks.peers import HERE, ROOT, run_worker
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.synthetic import Sample, SyntheticWorld, WorldConfig, score

FOLDER = ROOT / "build" / "synthetic"
WORLDS = ("mechstudy", "saelens")
HELD_OUT_ROWS = 65_536
FIRST_HELD_OUT_STEP = 10**6  # as in `score`
TRAINING_SEED = 1_000  # added to the world's: with the same one, initial weights are the world's own random directions
MEASURES = ("mcc", "f1", "uniqueness", "fvu", "l0", "dead_share")
BARS = ("mcc", "f1")


class FileWorld:
    """A world in a file, as `score` needs it."""

    def __init__(self, file: Path, batch_size: int) -> None:
        self.batch_size = batch_size
        with safe_open(file, "pt") as opened:
            self._x, self._strengths = opened.get_tensor("held_out"), opened.get_tensor("strengths")
            self.features_GD, self.offset_D = opened.get_tensor("features"), opened.get_tensor("offset")

    def sample(self, step: int, n_rows: int | None = None) -> Sample:
        """The held-out rows of a step that `score` asks for."""
        first = (step - FIRST_HELD_OUT_STEP) * self.batch_size
        rows = slice(first, first + (n_rows or self.batch_size))
        return Sample(self._x[rows], self._strengths[rows])

    @property
    def l0(self) -> float:
        return float((self._strengths > 0).sum()) / len(self._x)


def make(world: str, seed: int, steps: int, batch: int) -> Path:
    """The world's file, drawn if it is not there."""
    file = FOLDER / f"{world}_seed{seed}_{steps}x{batch}.safetensors"
    if file.exists():
        return file
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"drawing {file.name}", flush=True)
    partial = file.with_suffix(".partial")
    if world == "saelens":
        run_worker("saelens", "world", partial, seed, steps * batch, HELD_OUT_ROWS)
    else:
        drawn = SyntheticWorld(WorldConfig(seed=seed), batch)
        held_out = drawn.sample(FIRST_HELD_OUT_STEP, HELD_OUT_ROWS)
        rows = torch.cat([drawn.sample(step).x_ND for step in range(steps)])
        tensors = {"rows": rows, "held_out": held_out.x_ND, "strengths": held_out.strengths_NG,
                   "features": drawn.features_GD, "offset": drawn.offset_D}  # fmt: skip
        save_file(tensors, partial)
    partial.rename(file)
    return file


def show(world: str, architecture: str, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print means and ranges over seeds; ours against the better recipe of each peer."""
    print(f"\n{world}'s world, {architecture:<22}" + "".join(f"{name:>18}" for name in MEASURES))
    for label, found in rows.items():
        cells = [[row[name] for row in found] for name in MEASURES]
        text = "".join(f"{statistics.mean(c):>8.3f} {min(c):.2f}-{max(c):.2f}".rjust(18) for c in cells)
        print(f"  {label:<36}{text}")
    means = {
        label: {name: statistics.mean(row[name] for row in found) for name in BARS} for label, found in rows.items()
    }
    ours = next((m for label, m in means.items() if label.startswith("mechstudy")), None)
    peers = [m for label, m in means.items() if not label.startswith("mechstudy")]
    if ours is None or not peers:
        return {}
    verdict = {name: {"ours": ours[name], "best_peer": max(m[name] for m in peers)} for name in BARS}
    for name, pair in verdict.items():
        pair["reached"] = pair["ours"] >= pair["best_peer"]
        print(f"  bar ({name} no worse): {pair['ours']:.3f} against {pair['best_peer']:.3f}:"
              f" {'reached' if pair['reached'] else 'MISSED'}")  # fmt: skip
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--architectures", nargs="+", choices=LIBRARIES, default=["batchtopk", "matryoshka"])
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES["topk"], default=["mechstudy", "saelens"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=1_024)
    parser.add_argument("--fresh", action="store_true", help="run finished contenders again")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "synthetic.json")
    a = parser.parse_args()
    found: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for world in a.worlds:
        found[world] = {name: defaultdict(list) for name in a.architectures}
        for seed in a.seeds:
            file = make(world, seed, a.steps, a.batch)
            truth = FileWorld(file, a.batch)
            for contender in contenders(a.architectures, a.libraries):
                name = f"{world}_{contender.library}_{contender.architecture}_{contender.recipe}_seed{seed}"
                task = contender.task(
                    FOLDER / "contenders" / name,
                    train=file,
                    held_out=None,
                    site="rows",
                    n_rows=a.steps * a.batch,
                    batch=a.batch,
                    n_features=len(truth.features_GD),
                    k=round(truth.l0),
                    precision="float32",
                    seed=TRAINING_SEED + seed,
                )
                answer = run(contender, task, fresh=a.fresh)
                scored = score(Dictionary.load(task.folder), truth, n_rows=HELD_OUT_ROWS)  # type: ignore[arg-type]  # what `score` uses
                label = f"{contender.library} ({contender.recipe} recipe)"
                found[world][contender.architecture][label].append({"seed": seed, "k": task.k, **answer, **scored})
    verdicts = {world: {name: show(world, name, rows) for name, rows in by.items()} for world, by in found.items()}
    options = {"steps": a.steps, "batch": a.batch, "seeds": a.seeds}
    write(a.out, options=options, found=found, verdicts=verdicts)


if __name__ == "__main__":
    main()
