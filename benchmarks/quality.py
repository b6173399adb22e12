"""Held-out quality at equal rows: TopK, BatchTopK and Matryoshka autoencoders of mechstudy and its peers.

Everybody trains on the same real rows (SmolLM2-135M-Instruct, layer 15, mlp_out) in the same order, one pass, with the
same number of latents and k. Peers run with their own recipe and with our learning rate, schedule and thresholds; the
better counts. Held-out rows are reconstructed by each library itself, and scored by one function.

FVU is told twice: as the library's own threshold gives it (its L0 beside it), and with the threshold moved so that the
mean L0 over training rows is exactly k, since a larger L0 buys a lower FVU. TopK has exactly k either way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.contenders import LIBRARIES, contenders, run, write
from benchmarks.peers import HERE
from benchmarks.real_rows import FOLDER, load, prepare
from benchmarks.workers.common import READ, Task
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.reconstruction import VarianceSums, evaluate

SITE = "mlp_out"
CALIBRATION_ROWS = 16_384


def calibrate(sae: Dictionary, rows: Tensor, k: int) -> Dictionary:
    """The dictionary with its thresholds scaled so that the mean L0 over the rows is k; topk stays as it is."""
    if sae.threshold is None:
        return sae
    shares = torch.cat([(sae.pre_activations(part.float()) / sae.threshold) for part in rows.split(READ)]).flatten()
    scale = shares.topk(k * len(rows), sorted=False).values.min()
    sae.threshold = nn.Parameter(sae.threshold * scale, requires_grad=False)
    return sae


@torch.no_grad()
def judge(task: Task, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with FVU: the library's own reconstruction, its weights as we read them, and at L0 = k."""
    assert task.held_out is not None
    y = load(Path(task.held_out), SITE)
    sums = VarianceSums()
    sums.add(y, load_file(task.folder / "reconstruction.safetensors")["reconstruction"])
    sae = Dictionary.load(task.folder, dtype=torch.float32)
    parts = [(part.float(), part.float()) for part in y.split(READ)]
    as_read = evaluate(sae, parts)
    at_k = evaluate(calibrate(sae, load(Path(task.train), SITE, CALIBRATION_ROWS), task.k), parts)
    return {
        **answer,
        "fvu": sums.fvu(),
        "fvu_as_read": as_read["fvu"],
        "fvu_at_k": at_k["fvu"],
        "l0_at_k": at_k["l0"],
    }


def show(architecture: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print one architecture's table; ours against the best peer."""
    print(f"\n{architecture:<40} {'FVU at k':>9} {'FVU':>8} {'L0':>6} {'dead':>6} {'lr':>8} {'seconds':>8}")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["fvu_at_k"]):
        print(
            f"  {name:<38} {row['fvu_at_k']:>9.4f} {row['fvu']:>8.4f} {row['l0']:>6.1f} {row['dead_share']:>6.1%}"
            f" {row['lr']:>8.1e} {row['seconds']:>8.0f}"
        )
    ours = {name: row for name, row in rows.items() if name.startswith("mechstudy")}
    peers = {name: row for name, row in rows.items() if name not in ours}
    if not ours or not peers:
        return {}
    [(_, own)] = ours.items()
    best = min(peers, key=lambda name: peers[name]["fvu_at_k"])
    reached = own["fvu_at_k"] <= peers[best]["fvu_at_k"]
    print(f"  bar (FVU at k no worse than the best peer's, {best}): {'reached' if reached else 'MISSED'}")
    return {
        "ours": own["fvu_at_k"],
        "best_peer": best,
        "best_peer_fvu_at_k": peers[best]["fvu_at_k"],
        "reached": reached,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="only capture and export the rows")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=2_048)
    parser.add_argument("--features", type=int, default=4_608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of everybody")
    parser.add_argument("--architectures", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES["topk"], default=list(LIBRARIES["topk"]))
    parser.add_argument("--fresh", action="store_true", help="run finished contenders again")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/quality_<precision>.json")
    a = parser.parse_args()
    real = prepare()
    print(f"rows: {real.summary}")
    if a.prepare:
        return
    found: dict[str, dict[str, dict[str, Any]]] = {architecture: {} for architecture in a.architectures}
    n_rows = real.n_rows(a.rows, a.batch)
    for contender in contenders(a.architectures, a.libraries):
        name = f"{contender.library}_{contender.architecture}_{contender.recipe}_{a.precision}"
        task = contender.task(
            FOLDER / "contenders" / name,
            train=real.train,
            held_out=real.held_out,
            site=SITE,
            n_rows=n_rows,
            batch=a.batch,
            n_features=a.features,
            k=a.k,
            precision=a.precision,
            seed=a.seed,
        )
        label = f"{contender.library} ({contender.recipe} recipe)"
        found[contender.architecture][label] = judge(task, run(contender, task, fresh=a.fresh))
    verdicts = {architecture: show(architecture, rows) for architecture, rows in found.items()}
    options = {"rows": n_rows, "batch": a.batch, "features": a.features, "k": a.k, "precision": a.precision}
    write(a.out or HERE / "results" / f"quality_{a.precision}.json", data=real.summary, options=options, found=found,
          verdicts=verdicts)  # fmt: skip


if __name__ == "__main__":
    main()
