"""Values of a prompt's nodes at every position: activations of features, and all that is written where they write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.circuits.donors import Donors, Key
from mechstudy.circuits.node_sets import Captured, Nodes
from mechstudy.models.batches import captured
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


@dataclass(frozen=True)
class NodeValues:
    """Of one prompt, by layer with nodes: activations [T, F], whether they apply [T], and values at the site [T, D].

    ``passing_TD`` is the part of the site's values that passes where features apply; absent where none does.
    """

    activation_TF: Mapping[int, Tensor]
    applies_T: Mapping[int, Tensor]
    site_TD: Mapping[int, Tensor]
    passing_TD: Mapping[int, Tensor]

    def written_TD(self, layer: int) -> Float[Tensor, "t d"]:
        """What features and error write at the layer's site together."""
        if layer not in self.passing_TD:
            return self.site_TD[layer]
        return self.site_TD[layer] - self.passing_TD[layer] * self.applies_T[layer][:, None]

    def replaced_by(self, donors: Donors) -> NodeValues:
        """A donor's values (of a `NodeRecorder`), to set on this prompt; its own where there is none.

        A mean of activations is that over rows at which features apply. Where they do not apply on this prompt
        activations stay zero: they cannot be set there.
        """
        values = {key: value[0] for key, value in donors.values.items()}
        has_T = donors.has_BT[0]

        def where_there(part: str, own: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {
                layer: torch.where(has_T.to(x.device)[:, None], values[part, layer].to(x), x)
                for layer, x in own.items()
            }

        for layer in self.activation_TF:
            values["features", layer] = where_applied(values["features", layer], values["applies", layer])
        return self.replaced(
            where_there("features", self.activation_TF),
            where_there("site", self.site_TD),
            where_there("passing", self.passing_TD),
        )

    def replaced(
        self, activation_TF: Mapping[int, Tensor], site_TD: Mapping[int, Tensor], passing_TD: Mapping[int, Tensor]
    ) -> NodeValues:
        """Other values of the same prompt's nodes; activations stay zero where features do not apply."""
        masked = {layer: a_TF * self.applies_T[layer][:, None] for layer, a_TF in activation_TF.items()}
        return NodeValues(masked, self.applies_T, site_TD, passing_TD)


@torch.no_grad()
def node_values(model: LanguageModel, nodes: Mapping[int, Nodes], tokens_T: Int[Tensor, " t"]) -> NodeValues:
    """The values of every node on one prompt."""
    if not nodes:
        return NodeValues({}, {}, {}, {})
    at = captured(model, tokens_T[None], sites_of(nodes))
    return values_at(nodes, {site: x_BTD[0] for site, x_BTD in at.items()}, torch.arange(len(tokens_T)))


def sites_of(nodes: Mapping[int, Nodes]) -> list[Site]:
    """The sites that values of nodes are taken from, in order."""
    return sorted({site for one in nodes.values() for site in (*one.reads, one.site)})


def values_at(nodes: Mapping[int, Nodes], at: Captured, position_N: Int[Tensor, " n"]) -> NodeValues:
    """The values of nodes in rows that were captured at these token positions."""
    activation, applies, passing = {}, {}, {}
    for layer, one in nodes.items():
        activation[layer], applies[layer] = one.activations(at, position_N.to(at[one.site].device))
        if one.has_passing:
            passing[layer] = one.passing(at)
    return NodeValues(activation, applies, {layer: at[one.site] for layer, one in nodes.items()}, passing)


@dataclass(frozen=True)
class NodeRecorder:
    """Records what `NodeValues` hold, for `DonorSource`.

    Keys are a part and a layer: ``features`` [B, T, F], ``applies`` [B, T, 1] (1 or 0), ``site``, ``passing``.
    """

    nodes: Mapping[int, Nodes]

    @property
    def reads(self) -> tuple[Site, ...]:
        """The sites that values are computed from."""
        return tuple(sites_of(self.nodes))

    def values(self, activations: Mapping[Site, Tensor]) -> dict[Key, Tensor]:
        """The values at every token."""
        shape = next((x.shape[:2] for x in activations.values()), (0, 0))
        position_N = torch.arange(shape[1]).repeat(shape[0])
        x = values_at(self.nodes, {site: x_BTD.flatten(0, 1) for site, x_BTD in activations.items()}, position_N)
        applies_N1 = {layer: applies_N[:, None].to(x.site_TD[layer]) for layer, applies_N in x.applies_T.items()}
        parts = {"features": x.activation_TF, "applies": applies_N1, "site": x.site_TD, "passing": x.passing_TD}
        return {
            (part, layer): torch.unflatten(rows_ND, 0, shape)
            for part, by_layer in parts.items()
            for layer, rows_ND in by_layer.items()
        }


def where_applied(mean: Tensor, applies: Float[Tensor, "*n 1"]) -> Tensor:
    """The mean over rows at which features apply, from that over all rows (0 where they do not) and their share."""
    return mean / torch.where(applies > 0, applies, 1)
