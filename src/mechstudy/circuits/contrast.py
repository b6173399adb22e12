"""Predicted effects of replacing each node's value by another: the other prompt's, a mean, or zero.

Every effect is m(replaced) - m(clean) of what is explained: negative for a node that supports the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.circuits.held_path import HeldPath, midpoints, written_sites
from mechstudy.circuits.live import explained_gradients, output_values
from mechstudy.circuits.node_effects import NodeEffects
from mechstudy.circuits.node_sets import Nodes
from mechstudy.circuits.node_values import NodeValues
from mechstudy.circuits.targets import Explained
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

STEPS = 10


@dataclass(frozen=True)
class Replaced:
    """A prompt and the values that its nodes are replaced by.

    ``own`` are the prompt's `node_values`, ``other`` the values to set in their place. Layers without nodes respond.
    """

    model: LanguageModel
    nodes: Mapping[int, Nodes]
    tokens_T: Int[Tensor, " t"]
    explained: Explained
    own: NodeValues
    other: NodeValues
    checkpointing: str = "auto"

    def of_layer(self, layer: int) -> Replaced:
        """The same with the nodes of one layer only: those of all others respond."""
        return replace(self, nodes={layer: self.nodes[layer]})

    def first_order(self, gradients: Mapping[Site, Tensor] | None = None) -> NodeEffects:
        """(other value - own value) . gradient of the unfrozen model (attribution patching, Nanda 2023).

        Everything above a node responds, as it does where that node alone, or a few nodes, are replaced. Effects within
        a layer add up. Those of different layers do not: what one does through another counts in both.

        Args:
            gradients: `explained_gradients` at `written_sites`, if they are there already.
        """
        if gradients is None:
            sites = written_sites(self.nodes)
            gradients = explained_gradients(self.model, self.tokens_T, self.explained, sites, self.checkpointing)
        return node_effects(self.nodes, self.own, self.other, gradients, 0)

    def integrated(self, steps: int = STEPS) -> NodeEffects:
        """Integrated gradients along the straight path on which all nodes, errors too, move to their other values.

        The midpoint rule with ``steps`` points (Sundararajan et al. 2017). Nodes have the values of the path, so none
        responds to another, and the effects add up to `change` but for the rule's error, which falls with the square of
        ``steps``.
        """
        values_B, leaves = self._on_path(midpoints(steps))
        gradients = torch.autograd.grad(values_B.sum(), list(leaves.values()), materialize_grads=True)
        mean = {site: gradient_BTD.mean(0) for site, gradient_BTD in zip(leaves, gradients, strict=True)}
        return node_effects(self.nodes, self.own, self.other, mean, steps)

    def change(self) -> float:
        """m(all replaced) - m(clean), measured: the change where all nodes, errors too, are replaced together."""
        values_B, _ = self._on_path([0.0, 1.0])
        start, end = values_B.detach().double().tolist()
        return float(end - start)

    def _on_path(self, shares: Sequence[float]) -> tuple[Tensor, dict[Site, Tensor]]:
        """What is explained at points of the path, one row each, and the zeros that were added where nodes write."""
        model, path = self.model, HeldPath(self.nodes, self.own, self.other)
        tokens_BT = self.tokens_T[None].expand(len(shares), -1)
        share_B11 = torch.tensor(shares, device=model.device, dtype=model.dtype)[:, None, None]
        leaves = {
            site: share_B11.new_zeros(*tokens_BT.shape, model.width(site)).requires_grad_() for site in path.sites
        }
        edits = path.edits(share_B11, leaves)
        return output_values(model, tokens_BT, self.explained, edits, self.checkpointing), leaves


@torch.no_grad()
def node_effects(
    nodes: Mapping[int, Nodes],
    own: NodeValues,
    other: NodeValues,
    gradients: Mapping[Site, Float[Tensor, "t d"]],
    steps: int,
) -> NodeEffects:
    """(other - own value) . gradient of every feature and error; an error has what remains of its site's change."""
    parts: list[tuple[Tensor, ...]] = []
    of_features: dict[Site, Tensor] = {}  # what features do through each site, by position
    for layer, one in nodes.items():
        own_TF, other_TF = own.activation_TF[layer], other.activation_TF[layer]
        changed_C = (other_TF != own_TF).any(0).nonzero()[:, 0]
        change_TC = (other_TF - own_TF)[:, changed_C]
        effect_TC = torch.zeros_like(change_TC)
        for site in one.writes_at:
            through_TC = change_TC * one.along(gradients[site], site, changed_C).to(change_TC)
            of_features[site] = of_features.get(site, 0.0) + through_TC.sum(1)
            effect_TC = effect_TC + through_TC
        position, column = change_TC.nonzero().unbind(1)
        feature = changed_C[column]
        values = (own_TF[position, feature], other_TF[position, feature], effect_TC[position, column])
        parts.append((torch.full_like(position, layer), feature, position, *values))
    error_T = {
        layer: ((other.written_TD(layer) - own.written_TD(layer)) * gradients[one.site]).sum(1) - of_features[one.site]
        for layer, one in nodes.items()
    }
    columns = [torch.cat(column).cpu() for column in zip(*parts, strict=True)] or [torch.zeros(0)] * 6
    layer_M, feature_M, position_M, own_M, other_M, effect_M = columns
    errors = {layer: e.cpu() for layer, e in error_T.items()}
    return NodeEffects(layer_M, feature_M, position_M, own_M, other_M, effect_M, errors, steps)
