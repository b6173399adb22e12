"""Predicted effects of replacing the nodes of one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class NodeEffects:
    """Predicted effects of replacing nodes, each alone, on one prompt.

    ``layer_M``, ``feature_M``, ``position_M``, ``own_M`` (the activation), ``other_M`` (what it is replaced by) and
    ``effect_M`` are of every feature whose activation changes; ``error_T`` of the error of each layer with nodes.
    ``steps``: of integrated gradients; 0 is first order. ``other_is_a_run``: the other activations are those of
    another prompt, and not means or zeros.
    """

    layer_M: Tensor
    feature_M: Tensor
    position_M: Tensor
    own_M: Tensor
    other_M: Tensor
    effect_M: Tensor
    error_T: Mapping[int, Tensor]
    steps: int
    other_is_a_run: bool = False

    def strongest(self, most: int) -> NodeEffects:
        """At most so many features, those of the largest effects; all errors."""
        if len(self.effect_M) <= most:
            return self
        kept = self.effect_M.abs().topk(most).indices.sort().values
        names = ("layer_M", "feature_M", "position_M", "own_M", "other_M", "effect_M")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    @property
    def total(self) -> float:
        """The sum over all features and errors."""
        return float(self.effect_M.double().sum()) + sum(float(e.double().sum()) for e in self.error_T.values())
