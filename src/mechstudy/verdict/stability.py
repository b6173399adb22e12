"""How much a circuit depends on the prompts it was chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from mechstudy.circuits.effects_table import EffectsTable, ranked
from mechstudy.core.seeds import numpy_generator
from mechstudy.statistics.bootstrap import Estimate

CORE, NOISE = 0.9, 0.5  # shares of halves: core from the first, noise below the second, contingent between


@dataclass(frozen=True)
class Stability:
    """Circuits of one size chosen on halves of the prompts, beside the circuit.

    Attributes:
        jaccard: the mean Jaccard index with the circuit (2510.00845), and the central interval of its values, which is
            one for the index of the circuit with that of the true effects.
        frequency: of each member of the circuit, the share of halves in which it is chosen.
        by_template: the Jaccard index of the circuits that each template alone chooses with the circuit.
    """

    jaccard: Estimate
    frequency: Float64[Tensor, " k"]
    by_template: dict[str, float]

    @property
    def counts(self) -> dict[str, int]:
        """Members that are core (chosen in at least 90% of halves), contingent, and noise (below 50%)."""
        n, core = len(self.frequency), int((self.frequency >= CORE).sum())
        noise = int((self.frequency < NOISE).sum())
        return {"core": core, "contingent": n - core - noise, "noise": noise}

    @property
    def record(self) -> dict[str, Any]:
        """As it is written to ``verdict.json``."""
        return {
            "jaccard": self.jaccard.value,
            "jaccard_ci": list(self.jaccard.ci) if self.jaccard.ci else None,
            "resamples_of_clusters": self.jaccard.n_clusters,
            **self.counts,
            "by_template": self.by_template,
        }


def stability(
    effects: EffectsTable,
    members: Sequence[int],
    clusters: Sequence[str],
    templates: Sequence[str],
    *,
    ranking: str,
    n_resamples: int,
    seed: int,
    level: float = 0.95,
) -> Stability:
    """Circuits of equal size from effects on random halves of the clusters of prompts; nothing is run.

    A half's mean varies around that of all clusters as that does around the truth, and by the same amount in every draw
    (stability selection, Meinshausen & Bühlmann 2010); draws with replacement would vary by more in some than in
    others, which makes intervals of the index too wide. An end of the interval is a value that half of its own draws
    leave inside (mid-p; Lancaster 1961), since the index takes few values.

    Args:
        effects: of every node on the prompts that the circuit was chosen on.
        members: the circuit's nodes.
        clusters: of the prompts.
        templates: of the prompts.
        ranking: as `circuits.ranked`.
        n_resamples: how often.
        seed: of the draws.
        level: of the interval.
    """
    own, k = set(members), len(members)
    names = sorted(set(clusters))
    of_cluster_CN = torch.stack([_rows(effects, clusters, name).sum(0) for name in names])
    rng = numpy_generator(seed, "verdict", "stability")
    column = {node: i for i, node in enumerate(members)}
    counts_K, values = torch.zeros(k, dtype=torch.float64), []
    for _ in range(n_resamples):
        weight_C = torch.from_numpy(half(len(names), rng))
        chosen = ranked(weight_C @ of_cluster_CN, ranking, k)
        counts_K[[column[i] for i in chosen if i in own]] += 1
        values.append(_jaccard(own, chosen))
    by_template = {
        name: _jaccard(own, ranked(_rows(effects, templates, name).mean(0), ranking, k))
        for name in sorted(set(templates))
        if len(set(templates)) > 1
    }
    n = len(names)
    ci = central(values, level) if n > 1 else None
    return Stability(Estimate(float(np.mean(values)), ci, len(clusters), n), counts_K / n_resamples, by_template)


def half(n: int, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
    """Weights of ``n`` clusters, two kinds: with mean 1, and 1 the mean square of their distance from it.

    Of an even number one half counts twice and the other not at all. One cluster counts once.
    """
    if n == 1:
        return np.ones(1)
    drawn = n // 2
    distance = np.full(n, -np.sqrt(drawn / (n - drawn)))
    distance[rng.permutation(n)[:drawn]] = np.sqrt((n - drawn) / drawn)
    weights: Float64[np.ndarray, " n"] = 1 + distance
    return weights


def central(values: Sequence[float], level: float) -> tuple[float, float]:
    """The smallest and the largest value with at least a tail's share beyond, half of those equal to it among these."""
    distinct, counts = np.unique(values, return_counts=True)
    below = (np.cumsum(counts) - counts / 2) / len(values)
    tail = (1 - level) / 2 - 1e-9
    inside = distinct[(below >= tail) & (below <= 1 - tail)]
    return float(inside[0]), float(inside[-1])


def _rows(effects: EffectsTable, labels: Sequence[str], label: str) -> Tensor:
    return effects.effects_PN[[i for i, one in enumerate(labels) if one == label]]


def _jaccard(own: set[int], chosen: Sequence[int]) -> float:
    both = len(own & set(chosen))
    return both / (len(own) + len(chosen) - both)
