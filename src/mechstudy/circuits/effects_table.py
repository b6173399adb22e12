"""Effects of replacing nodes, one table whatever predicted or measured them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor

from mechstudy.circuits.donors import Replacement
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.core.errors import MechstudyError


@dataclass(frozen=True)
class Gap:
    """How well effects add up to the change that their method promises, at a ``place``.

    ``sum_P`` is the sum of effects and ``change_P`` the measured change of the metric, of each prompt.
    """

    place: str
    sum_P: Float64[Tensor, " p"]
    change_P: Float64[Tensor, " p"]

    @property
    def share(self) -> float:
        """The mean size of the difference, as a share of the mean size of the change."""
        return float((self.sum_P - self.change_P).abs().mean() / self.change_P.abs().mean().clamp_min(1e-30))


@dataclass(frozen=True)
class EffectsTable:
    """The change of the answers' contrast when each node alone is replaced, on each prompt.

    ``effects_PN`` [prompts, nodes] is metric(replaced) - metric(clean): negative where the node supports the
    answer. ``positions`` are those that nodes are at; ``gaps`` are there for methods that promise a sum.
    """

    nodes: tuple[Any, ...]
    effects_PN: Float64[Tensor, "p n"]
    prompts: tuple[str, ...]
    method: str
    replaced_by: Replacement
    positions: NamedPositions
    gaps: tuple[Gap, ...] = ()

    @property
    def effects(self) -> Float64[Tensor, " n"]:
        """Means over prompts."""
        return self.effects_PN.mean(0)

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each node: node, kind, layer, head, feature, position, method, effect (mean over prompts).

        Kinds are head, mlp, feature and error; ``head`` and ``feature`` are null of others.
        """
        nodes = self.nodes
        names = [str(node) for node in nodes]
        return pl.DataFrame(
            {
                "node": names,
                "kind": ["feature" if name.startswith("f.") else name.partition(".")[0] for name in names],
                "layer": [node.layer for node in nodes],
                "head": [getattr(node, "head", None) for node in nodes],
                "feature": [getattr(node, "feature", None) for node in nodes],
                "position": [node.position for node in nodes],
                "method": [self.method] * len(nodes),
                "effect": self.effects.tolist(),
            },
            schema_overrides={"head": pl.Int64, "feature": pl.Int64},
        )

    @property
    def per_prompt(self) -> pl.DataFrame:
        """A row for each prompt and node: prompt_id, node, effect."""
        n = len(self.nodes)
        return pl.DataFrame(
            {
                "prompt_id": [prompt for prompt in self.prompts for _ in range(n)],
                "node": [str(node) for node in self.nodes] * len(self.prompts),
                "effect": self.effects_PN.flatten().tolist(),
            }
        )

    @property
    def completeness(self) -> pl.DataFrame:
        """A row for each sum that the method promises: place, sum and change (means over prompts), gap (`Gap.share`).

        Empty for methods that promise none.
        """
        return pl.DataFrame(
            [(g.place, float(g.sum_P.mean()), float(g.change_P.mean()), g.share) for g in self.gaps],
            schema={"place": pl.String, "sum": pl.Float64, "change": pl.Float64, "gap": pl.Float64},
            orient="row",
        )

    def order(self, by: str = "magnitude") -> list[int]:
        """Node numbers, the strongest first (see `ranked`)."""
        return ranked(self.effects, by)

    def top(self, k: int, by: str = "magnitude") -> pl.DataFrame:
        """The frame's rows of the ``k`` strongest nodes, the strongest first (see `ranked`)."""
        return self.frame[self.order(by)[:k]]

    def __repr__(self) -> str:
        return (
            f"effects of {len(self.nodes)} nodes on {len(self.prompts)} prompts, by {self.method}, "
            f"replaced by {self.replaced_by}\n{self.top(10)}"
        )

    def _repr_html_(self) -> str:
        return self.top(10)._repr_html_()


def ranked(effects_N: Float64[Tensor, " n"], by: str = "magnitude", k: int | None = None) -> list[int]:
    """Node numbers, the strongest first; equal ones in order of number.

    Args:
        effects_N: of replacing each node.
        by: ``magnitude``, the size of the effect: what a circuit needs to do as the model does, against it too.
            ``support``: the most negative effect first, so that nodes come first without which the metric falls.
            ``balance``: by size among those that support and those that oppose, taken from the side that brings the sum
            of effects so far towards the sum of all: a circuit of any size then does as much as the model does.
        k: how many; by default all.

    Raises:
        MechstudyError: another ranking.
    """
    k = len(effects_N) if k is None else min(k, len(effects_N))
    if by == "balance":
        return _balanced(effects_N, k)
    if by not in ("magnitude", "support"):
        raise MechstudyError(f"nodes cannot be ranked by {by!r}", facts={"rankings": "magnitude, support, balance"})
    strength = effects_N.abs() if by == "magnitude" else -effects_N
    return torch.sort(strength, descending=True, stable=True).indices[:k].tolist()


def _balanced(effects_N: Tensor, k: int) -> list[int]:
    effects, total = effects_N.tolist(), float(effects_N.sum())
    by_size = ranked(effects_N)[::-1]
    below = [i for i in by_size if effects[i] < 0]
    others = [i for i in by_size if effects[i] >= 0]
    order: list[int] = []
    so_far = 0.0
    while len(order) < k:
        side = below if below and (so_far > total or not others) else others
        order.append(side.pop())
        so_far += effects[order[-1]]
    return order


def by_prompt(batches: Sequence[Sequence[int]], parts: Sequence[Tensor]) -> Tensor:
    """Rows of batches in the order of prompts."""
    order = torch.tensor([i for batch in batches for i in batch])
    return torch.cat([part.cpu() for part in parts])[order.argsort()]
