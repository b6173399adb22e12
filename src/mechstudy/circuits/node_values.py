"""Values of a prompt's nodes at every position: activations of features, and all that is written where they write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.active_nodes import applies_at
from mechstudy.circuits.aggregate import position_names
from mechstudy.circuits.bases import check_bases, site_read, site_written
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

Captured = Mapping[Site, Tensor]


@runtime_checkable
class Nodes(Protocol):
    """The nodes of one layer: features, each of which adds activation x vector at one or more sites, and an error.

    The error is what the site holds beyond features, constants and what passes. Rows N may be any; `passing` accepts
    [..., D] too.
    """

    @property
    def reads(self) -> tuple[Site, ...]:
        """Sites that activations are a function of, beside ``site``."""

    @property
    def site(self) -> Site:
        """The site whose whole value is that of the nodes."""

    @property
    def writes_at(self) -> tuple[Site, ...]:
        """Sites that features write: ``site`` first, then those of higher layers."""

    def activations(
        self, at: Captured, position_N: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n f"], Bool[Tensor, " n"]]:
        """Activations of every feature at rows of these token positions, and whether features apply there."""

    @property
    def has_passing(self) -> bool:
        """Whether a part of the site's value is no node's where features apply: that of a skip path."""

    def passing(self, at: Captured) -> Float[Tensor, "*n d"]:
        """That part, a function of ``reads``; it follows the edited run."""

    def constant(self, applies_N: Bool[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """What is at the site where every activation and error is zero."""

    def vectors(self, features: Int[Tensor, " f"]) -> tuple[Float[Tensor, "f d"], ...]:
        """What features write at each of ``writes_at`` per unit of activation."""

    def along(self, gradient_TD: Float[Tensor, "t d"], site: Site, features: Int[Tensor, " f"]) -> Float[Tensor, "t f"]:
        """Inner products of a gradient at one of ``writes_at`` with what features write there."""


@dataclass(frozen=True)
class DictionaryNodes:
    """The features of a dictionary of ``layer`` and its error.

    An SAE, a transcoder, or one layer of a cross-layer transcoder.
    """

    dictionary: Dictionary
    layer: int

    @property
    def reads(self) -> tuple[Site, ...]:
        """``mlp_in`` or ``resid_mid`` of a transcoder, an SAE's own site."""
        return (site_read(self.dictionary, self.layer),)

    @property
    def site(self) -> Site:
        """``mlp_out``, or an SAE's site."""
        return site_written(self.dictionary, self.layer)

    @property
    def writes_at(self) -> tuple[Site, ...]:
        """``site``, of a cross-layer transcoder those of all its layers from ``layer`` on."""
        return tuple(map(Site.parse, self.dictionary.sites_out))

    def activations(
        self, at: Captured, position_N: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n f"], Bool[Tensor, " n"]]:
        """As `Nodes.activations`; zero where the dictionary does not apply."""
        x_ND = at[self.reads[0]]
        applies_N = applies_at(self.dictionary, x_ND, position_N, at[self.site])
        return self.dictionary.encode(x_ND.to(self.dictionary.b_enc)).to(x_ND) * applies_N[:, None], applies_N

    @property
    def has_passing(self) -> bool:
        """Whether there is a skip path."""
        return self.dictionary.W_skip is not None

    def passing(self, at: Captured) -> Float[Tensor, "*n d"]:
        """What the skip path writes."""
        assert self.dictionary.W_skip is not None
        x_ND = at[self.reads[0]]
        return x_ND @ self.dictionary.W_skip.T.to(x_ND)

    def constant(self, applies_N: Bool[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The decoder's bias where the dictionary applies."""
        return self.dictionary.b_dec * applies_N[:, None]

    def vectors(self, features: Int[Tensor, " f"]) -> tuple[Float[Tensor, "f d"], ...]:
        """Decoder rows."""
        return self.dictionary.writes(features)

    def along(self, gradient_TD: Float[Tensor, "t d"], site: Site, features: Int[Tensor, " f"]) -> Float[Tensor, "t f"]:
        """As `Nodes.along`."""
        vectors_FD = self.vectors(features)[self.writes_at.index(site)]
        return gradient_TD @ vectors_FD.T.to(gradient_TD)


@dataclass(frozen=True)
class NeuronNodes:
    """The neurons of ``layer``, which hold all of ``mlp_act``; those of the first position are no nodes."""

    neurons: Neurons
    layer: int
    has_passing: ClassVar[bool] = False

    @property
    def reads(self) -> tuple[Site, ...]:
        """Nothing else: activations are the site's values."""
        return ()

    @property
    def site(self) -> Site:
        """``mlp_act``."""
        return site_written(self.neurons, self.layer)

    @property
    def writes_at(self) -> tuple[Site, ...]:
        """``mlp_act``."""
        return (self.site,)

    def activations(
        self, at: Captured, position_N: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n f"], Bool[Tensor, " n"]]:
        """As `Nodes.activations`."""
        x_NF = at[self.site]
        applies_N = applies_at(self.neurons, x_NF, position_N)
        return x_NF * applies_N[:, None], applies_N

    def passing(self, at: Captured) -> Float[Tensor, "*n d"]:
        """Nothing passes."""
        raise AssertionError("neurons hold all of their site")

    def constant(self, applies_N: Bool[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Zero."""
        return self.neurons.b_enc.expand(len(applies_N), -1)

    def vectors(self, features: Int[Tensor, " f"]) -> tuple[Float[Tensor, "f d"], ...]:
        """Coordinates of ``mlp_act``."""
        return self.neurons.writes(features)

    def along(self, gradient_TD: Float[Tensor, "t d"], site: Site, features: Int[Tensor, " f"]) -> Float[Tensor, "t f"]:
        """As `Nodes.along`, without the coordinates' vectors."""
        return gradient_TD[:, features]


def nodes_of(model: LanguageModel, bases: Mapping[int, Basis]) -> dict[int, Nodes]:
    """The nodes of each layer that has a basis.

    Raises:
        MechstudyError: a dictionary is of another site or layer.
    """
    check_bases(bases, "contrasts", model)
    return {
        layer: NeuronNodes(basis, layer) if isinstance(basis, Neurons) else DictionaryNodes(basis, layer)
        for layer, basis in sorted(bases.items())
    }


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
    at = captured(model, tokens_T[None], _sites(nodes))
    return _values(nodes, {site: x_BTD[0] for site, x_BTD in at.items()}, torch.arange(len(tokens_T)))


def _sites(nodes: Mapping[int, Nodes]) -> list[Site]:
    return sorted({site for one in nodes.values() for site in (*one.reads, one.site)})


def _values(nodes: Mapping[int, Nodes], at: Captured, position_N: Tensor) -> NodeValues:
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
            at = captured(model, torch.tensor([pairs[i].clean_tokens for i in batch]), _sites(nodes))
            n = len(pairs[batch[0]].clean_tokens)
            rows: dict[str, list[int]] = defaultdict(list)
            for row, i in enumerate(batch):
                for t, name in enumerate(names[i]):
                    rows[name].append(row * n + t)
            for name, chosen in rows.items():
                index = torch.tensor(chosen)
                part = {site: x.flatten(0, 1)[index.to(x.device)] for site, x in at.items()}
                self._add(name, _values(nodes, part, index % n))

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
