"""Predicted effects of replacing each node's value by another: the other prompt's, a mean, or zero.

Every effect is m(replaced) - m(clean) of what is explained: negative for a node that supports the answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.circuits.live import explained_gradients, output_values
from mechstudy.circuits.node_effects import NodeEffects
from mechstudy.circuits.node_sets import Nodes
from mechstudy.circuits.node_values import NodeValues
from mechstudy.circuits.targets import Explained
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.reading import SiteReader, chained
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
        alphas_B = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        values_B, leaves = self._on_path(alphas_B)
        gradients = torch.autograd.grad(values_B.sum(), list(leaves.values()), materialize_grads=True)
        mean = {site: gradient_BTD.mean(0) for site, gradient_BTD in zip(leaves, gradients, strict=True)}
        return node_effects(self.nodes, self.own, self.other, mean, steps)

    def change(self) -> float:
        """m(all replaced) - m(clean), measured: the change where all nodes, errors too, are replaced together."""
        values_B, _ = self._on_path(torch.tensor([0.0, 1.0], dtype=torch.float64))
        start, end = values_B.detach().double().tolist()
        return float(end - start)

    def _on_path(self, alphas_B: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
        """What is explained at points of the path, one row each, and the zeros that were added where nodes write."""
        model, nodes, own, other = self.model, self.nodes, self.own, self.other
        tokens_BT = self.tokens_T[None].expand(len(alphas_B), -1)
        alpha_B11 = alphas_B.to(model.device, model.dtype)[:, None, None]
        leaves = {
            site: alpha_B11.new_zeros(*tokens_BT.shape, model.width(site)).requires_grad_()
            for site in written_sites(nodes)
        }
        owner = {one.site: layer for layer, one in nodes.items()}
        edits: dict[Site, list[Edit]] = defaultdict(list)
        for site, leaf in leaves.items():
            if site in owner:
                layer = owner[site]
                start_TD = own.written_TD(layer)
                value_BTD = start_TD + alpha_B11 * (other.written_TD(layer) - start_TD) + leaf
                edits[site].append(_held(nodes[layer], value_BTD, own.applies_T[layer], edits))
            else:
                edits[site].append(_moved(alpha_B11 * _written_from_below(nodes, own, other, site) + leaf))
        by_site = {site: chained(some) for site, some in edits.items()}
        return output_values(model, tokens_BT, self.explained, by_site, self.checkpointing), leaves


def written_sites(nodes: Mapping[int, Nodes]) -> list[Site]:
    """The sites that features write, in order."""
    return sorted({site for one in nodes.values() for site in one.writes_at})


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


def _moved(change_BTD: Tensor) -> Edit:
    return lambda x_BTD: x_BTD + change_BTD


def _held(nodes: Nodes, value_BTD: Tensor, applies_T: Tensor, edits: dict[Site, list[Edit]]) -> Edit:
    """Sets a site to a value, plus what passes there in the edited run; adds the edits that read what that needs."""
    readers = {site: SiteReader(site) for site in nodes.reads} if nodes.has_passing else {}
    for reader in readers.values():
        for site, keep in reader.edits.items():
            edits[site].append(keep)

    def hold(_x_BTD: Tensor) -> Tensor:
        if not readers:
            return value_BTD
        passing_BTD = nodes.passing({site: reader.take() for site, reader in readers.items()})
        return value_BTD + passing_BTD * applies_T[:, None]

    return hold


def _written_from_below(nodes: Mapping[int, Nodes], own: NodeValues, other: NodeValues, site: Site) -> Tensor:
    """Change of what features of lower layers write at a site that is no layer's own, [T, D]."""
    total: list[Tensor] = []
    for layer, one in nodes.items():
        if site in one.writes_at:
            change_TF = other.activation_TF[layer] - own.activation_TF[layer]
            columns = change_TF.any(0).nonzero()[:, 0]
            vectors_CD = one.vectors(columns)[one.writes_at.index(site)]
            total.append(change_TF[:, columns] @ vectors_CD.to(change_TF))
    return reduce(add, total)
