"""Do 95% intervals of a verdict hold the truth 95% of the time? `python -m benchmarks.coverage`.

Prompts are simulated: clusters of prompts with effects of their own, a circuit that carries a known share of each, and
noise of prompt and cluster. Each simulation makes the intervals of f and of the mean contrast as verdicts do.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy import stats

from mechstudy.verdict.shares import ALL, KEPT, NONE, Shares

F, EFFECT = 0.85, 4.0


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="simulations of each case")
    a = parser.parse_args()
    for clusters, each in ((8, 2), (16, 1), (16, 2), (24, 1)):
        for skewed in (False, True):
            rng, held = np.random.default_rng(clusters + each), {"f": 0, "mean contrast": 0}
            for _ in range(a.n):
                shares = simulated(rng, clusters, each, skewed)
                for name, estimate, truth in (("f", shares.f(KEPT), F), ("mean contrast", shares.mean(ALL), EFFECT)):
                    assert estimate.ci is not None
                    held[name] += estimate.ci[0] <= truth <= estimate.ci[1]
            shape = "skewed" if skewed else "normal"
            for name, count in held.items():
                low, high = stats.binomtest(count, a.n).proportion_ci(0.95, "exact")
                print(
                    f"{clusters} clusters of {each}, {shape}: {name} {count / a.n:.1%} [{low:.1%}, {high:.1%}]",
                    flush=True,
                )


if __name__ == "__main__":
    main()
