"""Do 95% intervals of a verdict hold the truth 95% of the time? `python -m benchmarks.coverage`.

Prompts are simulated: clusters of prompts with effects of their own, a circuit that carries a known share of each, and
noise of prompt and cluster. Each simulation makes the intervals of f and of the mean contrast as verdicts do. For the
Jaccard index, every node has a true effect and each cluster its own; the truth is the index of the circuit that these
prompts choose with the one that the true effects choose.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.circuits.effects_table import EffectsTable, ranked
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.verdict.shares import ALL, KEPT, NONE, Shares
from mechstudy.verdict.stability import stability

F, EFFECT = 0.85, 4.0
N_NODES, SIZE = 1000, 30


def simulated(rng: np.random.Generator, clusters: int, each: int, skewed: bool) -> Shares:
    """Prompts of some clusters, ``each`` in every one; effects are gamma distributed if ``skewed``, else normal."""

    def of_clusters(scale: float) -> np.ndarray:
        drawn = rng.gamma(2.0, 1.0, clusters) - 2.0 if skewed else rng.normal(0.0, 2**0.5, clusters)
        return np.repeat(scale * drawn / 2**0.5, each)

    n = clusters * each
    none = rng.normal(0.0, 0.3, n)
    effect = EFFECT + of_clusters(1.2) + rng.normal(0.0, 0.5, n)
    kept = none + F * effect + of_clusters(0.6) + rng.normal(0.0, 0.3, n)
    values = {ALL: none + effect, NONE: none, KEPT: kept}
    names = np.repeat(np.arange(clusters), each).astype(str).tolist()
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    return Shares(tensors, names, seed=int(rng.integers(2**31)), n_resamples=1000)


def chosen(rng: np.random.Generator, clusters: int, noise: float) -> tuple[float, tuple[float, float]]:
    """The Jaccard index of a circuit with the true one, and the interval of a verdict; ``noise`` is of one cluster."""
    true_N = torch.from_numpy(-rng.standard_t(2.0, N_NODES))
    effects_PN = true_N + noise * torch.from_numpy(rng.normal(0.0, 1.0, (clusters, N_NODES)))
    ids = tuple(map(str, range(clusters)))
    table = EffectsTable(tuple(range(N_NODES)), effects_PN, ids, "ig_nodes", "corrupted", NamedPositions.whole())
    own, truth = (set(ranked(mean_N, "balance", SIZE)) for mean_N in (effects_PN.mean(0), true_N))
    interval = stability(
        table, sorted(own), ids, ids, ranking="balance", n_resamples=200, seed=int(rng.integers(2**31))
    ).jaccard.ci
    assert interval is not None
    return len(own & truth) / len(own | truth), interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="simulations of each case")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "coverage.json")
    a = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(case: str, what: str, inside: int) -> None:
        low, high = stats.binomtest(inside, a.n).proportion_ci(0.95, "exact")
        rows.append({"case": case, "what": what, "held": inside / a.n, "low": float(low), "high": float(high)})
        print(f"{case}: {what} {inside / a.n:.1%} [{low:.1%}, {high:.1%}]", flush=True)

    for clusters, noise in ((8, 1.0), (16, 1.0), (16, 4.0), (24, 4.0)):
        rng, inside, at = np.random.default_rng(clusters), 0, []
        for _ in range(a.n):
            index, (low, high) = chosen(rng, clusters, noise)
            inside += low <= index <= high
            at.append(index)
        add(f"{clusters} clusters, noise {noise:g}, mean index {np.mean(at):.2f}", "Jaccard index", inside)
    for clusters, each in ((8, 2), (16, 1), (16, 2), (24, 1)):
        for skewed in (False, True):
            rng, held = np.random.default_rng(clusters + each), {"f": 0, "mean contrast": 0}
            for _ in range(a.n):
                shares = simulated(rng, clusters, each, skewed)
                for name, estimate, truth in (("f", shares.f(KEPT), F), ("mean contrast", shares.mean(ALL), EFFECT)):
                    assert estimate.ci is not None
                    held[name] += estimate.ci[0] <= truth <= estimate.ci[1]
            for name, count in held.items():
                add(f"{clusters} clusters of {each}, {'skewed' if skewed else 'normal'}", name, count)
    write(a.out, n=a.n, rows=rows)


if __name__ == "__main__":
    main()
