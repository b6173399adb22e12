"""The nodes of a layer as what stands for a site: features and their error, or neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechstudy.circuits.active_nodes import applies_at
from mechstudy.circuits.bases import check_bases, site_read, site_written
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

Captured = Mapping[Site, Tensor]


@runtime_checkable
class Nodes(Protocol):
    """The nodes of one layer: features, each of which adds activation x vector at one or more sites, and an error.

    The error is what the site holds beyond features and what passes. Rows N may be any; `passing` accepts
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
        """Whether a part of the site's value is no node's where features apply: a decoder's bias, a skip path."""

    def passing(self, at: Captured) -> Float[Tensor, "*n d"]:
        """That part, a function of ``reads``; it follows the edited run."""

    def vectors(self, features: Int[Tensor, " f"]) -> tuple[Float[Tensor, "f d"], ...]:
        """What features write at each of ``writes_at`` per unit of activation."""

    def along(self, gradient_TD: Float[Tensor, "t d"], site: Site, features: Int[Tensor, " f"]) -> Float[Tensor, "t f"]:
        """Inner products of a gradient at one of ``writes_at`` with what features write there."""

    def written(
        self, amounts: Float[Tensor, "*n f"], features: Int[Tensor, " f"] | None = None
    ) -> tuple[Float[Tensor, "*n d"], ...]:
        """What features, by default all, write together at each of ``writes_at`` at these activations."""


@dataclass(frozen=True)
class DictionaryNodes:
    """The features of a dictionary of ``layer`` and its error.

    An SAE, a transcoder, or one layer of a cross-layer transcoder.
    """

    dictionary: Dictionary
    layer: int
    has_passing: ClassVar[bool] = True

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

    def passing(self, at: Captured) -> Float[Tensor, "*n d"]:
        """The decoder's bias, and what the skip path writes."""
        x_ND = at[self.reads[0]]
        b_ND = self.dictionary.b_dec.to(x_ND).expand(*x_ND.shape[:-1], -1)
        W_skip = self.dictionary.W_skip
        return b_ND if W_skip is None else b_ND + x_ND @ W_skip.T.to(x_ND)

    def vectors(self, features: Int[Tensor, " f"]) -> tuple[Float[Tensor, "f d"], ...]:
        """Decoder rows."""
        return self.dictionary.writes(features)

    def along(self, gradient_TD: Float[Tensor, "t d"], site: Site, features: Int[Tensor, " f"]) -> Float[Tensor, "t f"]:
        """As `Nodes.along`."""
        vectors_FD = self.vectors(features)[self.writes_at.index(site)]
        return gradient_TD @ vectors_FD.T.to(gradient_TD)

    def written(
        self, amounts: Float[Tensor, "*n f"], features: Int[Tensor, " f"] | None = None
    ) -> tuple[Float[Tensor, "*n d"], ...]:
        """As `Nodes.written`."""
        if features is not None:
            rows: tuple[Tensor, ...] = self.vectors(features)
        elif len(self.writes_at) == 1:
            rows = (self.dictionary.W_dec,)  # all rows: as they are, and not copied
        else:
            rows = self.vectors(torch.arange(self.dictionary.cfg.d_sae, device=amounts.device))
        return tuple(amounts @ rows_FD.to(amounts) for rows_FD in rows)


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

    def vectors(self, features: Int[Tensor, " f"]) -> tuple[Float[Tensor, "f d"], ...]:
        """Coordinates of ``mlp_act``."""
        return self.neurons.writes(features)

    def along(self, gradient_TD: Float[Tensor, "t d"], site: Site, features: Int[Tensor, " f"]) -> Float[Tensor, "t f"]:
        """As `Nodes.along`, without the coordinates' vectors."""
        return gradient_TD[:, features]

    def written(
        self, amounts: Float[Tensor, "*n f"], features: Int[Tensor, " f"] | None = None
    ) -> tuple[Float[Tensor, "*n d"], ...]:
        """As `Nodes.written`: the activations, each at its coordinate."""
        if features is None:
            return (amounts,)
        zeros = amounts.new_zeros(*amounts.shape[:-1], self.neurons.cfg.d_sae)
        return (zeros.index_copy(-1, features.to(amounts.device), amounts),)


def nodes_of(model: LanguageModel, bases: Mapping[int, Basis], purpose: str = "contrasts") -> dict[int, Nodes]:
    """The nodes of each layer that has a basis; errors say what ``purpose`` (a plural) need.

    Raises:
        MechstudyError: a dictionary is of another site or layer.
    """
    check_bases(bases, purpose, model)
    return {
        layer: NeuronNodes(basis, layer) if isinstance(basis, Neurons) else DictionaryNodes(basis, layer)
        for layer, basis in sorted(bases.items())
    }
