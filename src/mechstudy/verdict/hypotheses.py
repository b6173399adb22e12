"""Tests of two ideals: that a circuit does exactly what the model does, and that each part of it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from mechstudy.core.seeds import numpy_generator
from mechstudy.statistics.bootstrap import wilson
from mechstudy.statistics.clusters import Array, cluster_sums
from mechstudy.statistics.false_discovery import benjamini_hochberg
from mechstudy.statistics.permutation import sign_flip_p

MARGIN = 0.1  # of the share of prompts, on either side of a half, that still counts as equivalent


@dataclass(frozen=True)
class Equivalence:
    """Whether a circuit's contrast is above the model's as often as below it.

    Attributes:
        above: the share of clusters in which the circuit's mean contrast is above the model's; ties count half.
        ci: its Wilson interval.
        p: of the hypothesis that it is within `MARGIN` of a half.
        n_clusters: of prompts.
    """

    above: float
    ci: tuple[float, float]
    p: float
    n_clusters: int

    @property
    def record(self) -> dict[str, Any]:
        """As it is written to ``verdict.json``."""
        return {"above": self.above, "ci": list(self.ci), "p": self.p, "n_clusters": self.n_clusters}


def equivalence(circuit: Array, model: Array, clusters: Sequence[str], level: float = 0.95) -> Equivalence:
    """The equivalence test of Shi et al. (2410.13032), with prompts of one cluster counted as one.

    The hypothesis is that a circuit and the model are as likely to outdo each other, within `MARGIN`. It is an ideal: a
    circuit that keeps nine tenths of the contrast on every prompt fails. The p-value is twice the smaller of two
    binomial tails, those at a half plus and minus the margin.

    Args:
        circuit: the contrast of each prompt with only the circuit kept.
        model: of each prompt.
        clusters: of the prompts.
        level: of the interval.
    """
    differences = cluster_sums(np.asarray(circuit) - np.asarray(model), clusters)
    n = len(differences)
    above = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    # Half a tie is rounded towards the hypothesis.
    count = int(np.floor(above) if above >= n / 2 else np.ceil(above))
    tails = (stats.binom.sf(count - 1, n, 0.5 + MARGIN), stats.binom.cdf(count, n, 0.5 - MARGIN))
    return Equivalence(above / n, wilson(above / n, n, level), min(1.0, 2 * float(min(tails))), n)


def part_tests(
    kept: Array, without: Sequence[Array], clusters: Sequence[str], seed: int
) -> tuple[list[float | None], list[float | None]]:
    """Of each part, p and adjusted p of the hypothesis that leaving it out of the circuit changes nothing.

    p by flips of clusters' signs, adjusted over the parts for the false discovery rate (Benjamini & Hochberg 1995).

    Args:
        kept: the contrast of each prompt with the circuit kept.
        without: of each part, the same with the circuit kept but for it.
        clusters: of the prompts.
        seed: of the flips.
    """
    p = [
        sign_flip_p(np.asarray(kept) - np.asarray(values), clusters, numpy_generator(seed, "verdict", f"part {i}"))
        for i, values in enumerate(without)
    ]
    return p, benjamini_hochberg(p)
