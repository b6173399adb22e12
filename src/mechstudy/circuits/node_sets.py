"""The nodes of a layer as what stands for a site: features and their error, or neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

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
