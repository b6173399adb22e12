"""Values of a prompt's nodes at every position: activations of features, and all that is written where they write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.node_sets import Captured, Nodes
from mechstudy.circuits.prompt_record import position_names
from mechstudy.models.batches import captured, length_buckets
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
        """What features, error and constants write at the layer's site together."""
        if layer not in self.passing_TD:
            return self.site_TD[layer]
        return self.site_TD[layer] - self.passing_TD[layer] * self.applies_T[layer][:, None]

    def at(self, places: Sequence[int | None], own: NodeValues) -> NodeValues:
        """The values at other positions, as values to set on another prompt; ``own`` are its own, kept at None.

        Activations are zero where features do not apply on that prompt: they cannot be set there.
        """
        has_T = torch.tensor([place is not None for place in places])
        index_T = torch.tensor([0 if place is None else place for place in places])

        def moved(here: Mapping[int, Tensor], there: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {
                layer: torch.where(has_T.to(x.device)[:, None], there[layer][index_T.to(x.device)], x)
                for layer, x in here.items()
            }

        return own.replaced(
            moved(own.activation_TF, self.activation_TF),
            moved(own.site_TD, self.site_TD),
            moved(own.passing_TD, self.passing_TD),
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


class MeanValues:
    """Means of node values over some prompts, by named position; unnamed positions share the name ``other``.

    Activations are means over the rows at which features apply; values at sites, over all rows.
    """

    def __init__(
        self, model: LanguageModel, nodes: Mapping[int, Nodes], pairs: Sequence[PromptPair], batch_tokens: int = 4096
    ) -> None:
        self._sums: dict[tuple[int, str], dict[str, tuple[Tensor, int]]] = {}
        if nodes and pairs:
            self._measure(model, nodes, pairs, batch_tokens)

    def on(self, names: Sequence[str], own: NodeValues) -> NodeValues:
        """The means at positions of these names, to set on a prompt; its own values (``own``) at names without."""

        def means(what: str, values: Mapping[int, Tensor]) -> dict[int, Tensor]:
            result = {}
            for layer, own_TN in values.items():
                result[layer] = own_TN.clone()
                for t, name in enumerate(names):
                    if (layer, name) in self._sums:
                        total_N, n = self._sums[layer, name][what]
                        result[layer][t] = (total_N / max(1, n)).to(own_TN)
            return result

        return own.replaced(
            means("activation", own.activation_TF), means("site", own.site_TD), means("passing", own.passing_TD)
        )

    @torch.no_grad()
    def _measure(
        self, model: LanguageModel, nodes: Mapping[int, Nodes], pairs: Sequence[PromptPair], batch_tokens: int
    ) -> None:
        names = [position_names(pair.positions, len(pair.clean_tokens)) for pair in pairs]
        for batch in length_buckets([len(pair.clean_tokens) for pair in pairs], batch_tokens):
            at = captured(model, torch.tensor([pairs[i].clean_tokens for i in batch]), sites_of(nodes))
            n = len(pairs[batch[0]].clean_tokens)
            rows: dict[str, list[int]] = defaultdict(list)
            for row, i in enumerate(batch):
                for t, name in enumerate(names[i]):
                    rows[name].append(row * n + t)
            for name, chosen in rows.items():
                index = torch.tensor(chosen)
                part = {site: x.flatten(0, 1)[index.to(x.device)] for site, x in at.items()}
                self._add(name, values_at(nodes, part, index % n))

    def _add(self, name: str, values: NodeValues) -> None:
        for layer, site_ND in values.site_TD.items():
            n, n_applies = len(site_ND), int(values.applies_T[layer].sum())
            parts = {"activation": (values.activation_TF[layer], n_applies), "site": (site_ND, n)}
            if layer in values.passing_TD:
                parts["passing"] = (values.passing_TD[layer], n)
            sums = self._sums.setdefault((layer, name), {})
            for what, (x_N, count) in parts.items():
                total, so_far = sums.get(what, (0.0, 0))
                sums[what] = (total + x_N.double().sum(0), so_far + count)


def zero_values(nodes: Mapping[int, Nodes], own: NodeValues) -> NodeValues:
    """The values at which every feature and every error is zero, to set on the prompt with the values ``own``."""
    site_TD = {layer: nodes[layer].constant(own.applies_T[layer]).to(x_TD) for layer, x_TD in own.site_TD.items()}
    return own.replaced(
        {layer: torch.zeros_like(a_TF) for layer, a_TF in own.activation_TF.items()},
        site_TD,
        {layer: torch.zeros_like(x_TD) for layer, x_TD in own.passing_TD.items()},
    )
