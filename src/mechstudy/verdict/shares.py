"""Values of the contrast under kept circuits, as shares of the effect between replacing nothing and everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from mechstudy.core.seeds import numpy_generator
from mechstudy.statistics.bootstrap import Estimate, bootstrap_of_sums, cluster_bootstrap, ratio
from mechstudy.statistics.clusters import Array

# Names of circuits that are kept.
ALL, NONE = "all", "none"
KEPT, CUT, ADVERSARY = "circuit", "without the circuit", "adversary"
BACKUPS, BOTH = "without backups", "without circuit and backups"
WITHOUT_ERRORS = "circuit but its errors"
# Of equal size, the first nodes of other rankings.
GRADIENT, EAP_IG = "gradient alone", "EAP-IG"
ACTIVATIONS, DIFFERENCES = "top activations", "difference of means"
RIVALS = (GRADIENT, EAP_IG, ACTIVATIONS, DIFFERENCES)


@dataclass(frozen=True)
class First:
    """The ``size`` strongest nodes of the circuit's own order."""

    size: int


@dataclass(frozen=True)
class Specification:
    """The first ``size`` nodes of a ranking."""

    ranking: str
    size: int


@dataclass(frozen=True)
class Without:
    """The circuit without a group of its nodes."""

    group: str


@dataclass(frozen=True)
class Random:
    """A random circuit, kept or ``cut``."""

    number: int
    cut: bool = False


Name = str | First | Specification | Without | Random


@dataclass(frozen=True)
class Shares:
    """The contrast of each prompt with each named circuit kept, and the shares that they make.

    Attributes:
        values: [prompts] of each circuit, `ALL` and `NONE` among them.
        clusters: of the prompts.
        seed: of the bootstrap.
        n_resamples: of the bootstrap.
        level: of intervals.
    """

    values: Mapping[Name, Float64[Tensor, " p"]]
    clusters: Sequence[str]
    seed: int
    n_resamples: int = 2000
    level: float = 0.95

    @property
    def defined(self) -> bool:
        """Whether replacing everything changes the contrast by more than about 0."""
        effect = self.contrasts(ALL) - self.contrasts(NONE)
        return ratio(effect, effect) is not None

    def f(self, name: Name) -> Estimate:
        """(m(circuit) - m(none)) / (m(all) - m(none)): 1 where it does what the whole model does."""
        return self.combined([name], [1.0])

    def lost(self, name: Name) -> Estimate:
        """(m(all) - m(circuit)) / (m(all) - m(none)) = 1 - f: what is lost where only these are kept."""
        return self.combined([name], [-1.0], plus=1.0)

    def combined(self, names: Sequence[Name], weights: Sequence[float], plus: float = 0.0) -> Estimate:
        """``plus`` and a weighted sum of circuits' f, resampled together."""
        if not self.defined:
            return Estimate(None, None, len(self.clusters), len(set(self.clusters)))
        w = np.array(weights)

        def statistic(sums: Array) -> Array:
            *of_names, none, every = sums
            shares: Array = plus + w @ self._shares(np.array(of_names), none, every)
            return shares

        columns = [self.contrasts(name) for name in (*names, NONE, ALL)]
        return bootstrap_of_sums(
            statistic, columns, self.clusters, self._rng(), n_resamples=self.n_resamples, level=self.level
        )

    def more_than(self, name: Name, other: Shares, of_other: Name) -> Estimate:
        """How much a circuit's f exceeds that of another, whose nodes are chosen from others, on the same prompts."""
        if not (self.defined and other.defined):
            return Estimate(None, None, len(self.clusters), len(set(self.clusters)))

        def statistic(sums: Array) -> Array:
            own, theirs = self._shares(*sums[:3]), self._shares(*sums[3:])
            difference: Array = own - theirs
            return difference

        columns = [self.contrasts(n) for n in (name, NONE, ALL)] + [other.contrasts(n) for n in (of_other, NONE, ALL)]
        return bootstrap_of_sums(
            statistic, columns, self.clusters, self._rng(), n_resamples=self.n_resamples, level=self.level
        )

    def _shares(self, kept: Array, none: Array, every: Array) -> Array:
        """F from sums; not a number where the effect is about 0."""
        effect = every - none
        shares: Array = (kept - none) / np.where(np.abs(effect) > 1e-9 * len(self.clusters), effect, np.nan)
        return shares

    def mean(self, name: Name) -> Estimate:
        """The mean contrast with a circuit kept."""
        return cluster_bootstrap(
            self.contrasts(name), self.clusters, self._rng(), n_resamples=self.n_resamples, level=self.level
        )

    def point(self, name: Name, rows: Sequence[int] | None = None) -> float | None:
        """F of some prompts, without an interval; None where it is undefined."""
        values, none, every = (
            self.contrasts(n) if rows is None else self.contrasts(n)[list(rows)] for n in (name, NONE, ALL)
        )
        return ratio(values - none, every - none)

    def contrasts(self, name: Name) -> Array:
        """The contrast of each prompt with a circuit kept."""
        values: Array = self.values[name].numpy()
        return values

    def _rng(self) -> np.random.Generator:
        return numpy_generator(self.seed, "verdict", "bootstrap")
