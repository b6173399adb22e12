"""Faithfulness of circuits by size: how much of the behaviour the k strongest nodes carry when only they are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import DonorSource, Replacement
from mechstudy.circuits.recording import comparable
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.core.seeds import numpy_generator
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.models.language_model import LanguageModel
from mechstudy.statistics.bootstrap import Estimate, bootstrap_of_sums, ratio
from mechstudy.statistics.clusters import Array

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class FaithfulnessCurve:
    """The curve f(k) = (m(C_k) - m(none)) / (m(all) - m(none)) of a ranking of nodes, and its areas.

    C_k are the ``k`` first nodes, all others are replaced; ``none`` has every node replaced. m are means over prompts
    of the answers' contrast. ``cmd`` is the area between f and 1, ``cpr`` that under f, over the fractions of nodes by
    the trapezoid rule on a linear scale from the first fraction to the last (MIB, 2504.13151): 0 and .999 are perfect.
    Intervals resample clusters of prompts; a ratio whose denominator is about 0 is None.
    """

    sizes: tuple[int, ...]
    f: tuple[Estimate, ...]
    cmd: Estimate
    cpr: Estimate
    all: float
    none: float
    n_nodes: int
    replaced_by: Replacement
    values_KP: Float64[Tensor, "k p"]

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each size: k, fraction (of the nodes), value (mean contrast), f, low, high."""
        rows = [
            (k, k / self.n_nodes, float(value_P.mean()), f.value, *(f.ci or (None, None)))
            for k, f, value_P in zip(self.sizes, self.f, self.values_KP, strict=True)
        ]
        schema = {"k": pl.Int64} | dict.fromkeys(("fraction", "value", "f", "low", "high"), pl.Float64)
        return pl.DataFrame(rows, schema=schema, orient="row")

    def at(self, k: int) -> Estimate:
        """F of the ``k`` first nodes, one of ``sizes``."""
        return self.f[self.sizes.index(k)]

    def __repr__(self) -> str:
        areas = ", ".join(f"{name} {_text(e)}" for name, e in (("CMD", self.cmd), ("CPR", self.cpr)))
        return (
            f"kept of {self.n_nodes} nodes, others replaced by {self.replaced_by}: {areas}; metric {self.all:.3f} with "
            f"all, {self.none:.3f} with none\n{self.frame}"
        )

    def _repr_html_(self) -> str:
        return self.frame._repr_html_()


def circuit_sizes(n_nodes: int, fractions: Sequence[float] = MIB_FRACTIONS) -> list[int]:
    """The number of nodes at each fraction of them, rounded down, as MIB does; 0 where a fraction is below one node."""
    return [int(n_nodes * fraction + 1e-9) for fraction in fractions]


def faithfulness_curve(
    model: LanguageModel,
    pairs: Iterable[PromptPair],
    nodes: NodeSet,
    order: Sequence[int],
    replacements: DonorSource,
    *,
    sizes: Sequence[int] = (),
    fractions: Sequence[float] = MIB_FRACTIONS,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> FaithfulnessCurve:
    """f(k) of keeping the first k nodes of an order, at MIB's sizes and others, with its areas.

    Args:
        model: the model.
        pairs: the prompts, others than those that the nodes were chosen on.
        nodes: the universe that is ranked, each node in ``order`` once.
        order: node numbers, the strongest first (`circuits.ranked`).
        replacements: of the nodes.
        sizes: further k, which do not enter the areas.
        fractions: of the nodes, ascending, over which the areas are taken.
        n_resamples: of the bootstrap.
        level: of the intervals.
        seed: of the bootstrap.
        batch_tokens: tokens run at a time.
        progress: receives messages.

    Raises:
        MechstudyError: an order that is not one of all nodes, or as `keep_only_values`.
    """
    pairs, n = comparable(pairs), len(nodes.nodes)
    if sorted(order) != list(range(n)):
        raise MechstudyError(f"the order has {len(order)} entries, and is not one of the {n} nodes, each once")
    of_areas = circuit_sizes(n, fractions)
    every = sorted({*of_areas, *sizes, 0, n})
    if every[0] < 0 or every[-1] > n:
        raise MechstudyError(f"a circuit of {n} nodes cannot have size {every[-1] if every[0] == 0 else every[0]}")
    values_CP = keep_only_values(
        model, pairs, nodes, first_kept(order, every), replacements, batch_tokens=batch_tokens, progress=progress
    )
    columns, row = values_CP.numpy(), {k: i for i, k in enumerate(every)}
    clusters = [pair.group for pair in pairs]
    weights = _trapezoid(np.array(fractions))

    effect_P = columns[row[n]] - columns[row[0]]
    defined = ratio(effect_P, effect_P) is not None

    def estimate(sizes: Sequence[int], combined: Array, around: float | None = None) -> Estimate:
        """Weighted sum of f, or of its distance from ``around``."""

        def statistic(sums: Array) -> Array:
            f = _ratios(sums[:-2], sums[-1], sums[-2], len(pairs))
            return combined @ (f if around is None else np.abs(f - around)) if defined else np.full(f.shape[1], np.nan)

        return bootstrap_of_sums(
            statistic,
            [*(columns[row[k]] for k in sizes), columns[row[n]], columns[row[0]]],
            clusters,
            numpy_generator(seed, "keep_only", "bootstrap"),
            n_resamples=n_resamples,
            level=level,
        )

    return FaithfulnessCurve(
        tuple(every),
        tuple(estimate([k], np.ones(1)) for k in every),
        estimate(of_areas, weights, around=1.0),
        estimate(of_areas, weights),
        float(columns[row[n]].mean()),
        float(columns[row[0]].mean()),
        n,
        replacements.to,
        values_CP,
    )


def first_kept(order: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Circuits [C, N] of the first nodes of an order."""
    rank_N = torch.empty(len(order), dtype=torch.long)
    rank_N[torch.tensor(order)] = torch.arange(len(order))
    return rank_N < torch.tensor(sizes)[:, None]


def _ratios(values: Array, none: Array, every: Array, n: int) -> Array:
    """F of sums over ``n`` prompts, [sizes, resamples]; NaN where the denominator is about 0."""
    effect = every - none
    safe = np.where(np.abs(effect) > 1e-9 * n, effect, np.nan)
    ratios: Array = (values - none) / safe
    return ratios


def _trapezoid(x: Array) -> Array:
    """Weights of the trapezoid rule at points ``x``."""
    step = np.diff(x) / 2
    return np.append(step, 0) + np.insert(step, 0, 0)


def _text(e: Estimate) -> str:
    if e.value is None:
        return "undefined"
    return f"{e.value:.3f}" + (f" [{e.ci[0]:.3f}, {e.ci[1]:.3f}]" if e.ci else "")
