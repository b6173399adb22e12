"""Attention heads and MLPs at named positions as nodes: names, activations, and what replaces them in a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from mechstudy.circuits.donors import Donors, Key
from mechstudy.circuits.named_positions import ALL, NamedPositions
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site


@dataclass(frozen=True, order=True)
class HeadAt:
    """An attention head's output at a named position; prints as ``head.23.3@last``."""

    layer: int
    head: int
    position: str

    def __str__(self) -> str:
        return f"head.{self.layer}.{self.head}@{self.position}"


@dataclass(frozen=True, order=True)
class MlpAt:
    """What an MLP writes at a named position; prints as ``mlp.12@last``. A mixture of experts is one MLP."""

    layer: int
    position: str

    def __str__(self) -> str:
        return f"mlp.{self.layer}@{self.position}"


Component = HeadAt | MlpAt


def component_at(name: Component | str) -> Component:
    """A component as users write it: ``"head.23.3@last"``, ``"mlp.12@last"``; without ``@`` at every position.

    Raises:
        MechstudyError: it is something else.
    """
    if isinstance(name, HeadAt | MlpAt):
        return name
    if isinstance(name, str) and (match := re.fullmatch(r"head\.(\d+)\.(\d+)(?:@(.+))?", name.strip())):
        return HeadAt(int(match[1]), int(match[2]), match[3] or ALL)
    if isinstance(name, str) and (match := re.fullmatch(r"mlp\.(\d+)(?:@(.+))?", name.strip())):
        return MlpAt(int(match[1]), match[2] or ALL)
    raise MechstudyError(f"{name!r} is not a component", fix="write head.LAYER.HEAD@position, or mlp.LAYER@position")


class Components:
    """The heads and MLPs of a model, each at every named position: `nodes` in order of layers.

    A head is its slice of ``attn_heads``, an MLP is ``mlp_out``. ``slices`` are the nodes of each site.

    Args:
        model: the model.
        positions: the names; ``NamedPositions.whole()`` for components as wholes.
        heads: whether heads are nodes.
        mlps: whether MLPs are nodes.
        layers: which layers' components are nodes; by default all.
    """

    def __init__(
        self,
        model: LanguageModel,
        positions: NamedPositions,
        *,
        heads: bool = True,
        mlps: bool = True,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.positions = positions
        self._parts: dict[Site, int] = {}
        self.slices: dict[Site, slice] = {}
        nodes: list[Component] = []
        for layer in range(model.n_layers) if layers is None else sorted(set(layers)):
            if heads:
                of_heads = [HeadAt(layer, h, name) for h in range(model.n_heads) for name in positions.names]
                self._add(Site("attn_heads", layer), model.n_heads, of_heads, nodes)
            if mlps:
                self._add(Site("mlp_out", layer), 1, [MlpAt(layer, name) for name in positions.names], nodes)
        if not nodes:
            raise MechstudyError("there are no components", fix="heads=True, mlps=True, and at least one layer")
        self.nodes = tuple(nodes)
        self.number = {node: i for i, node in enumerate(self.nodes)}

    @classmethod
    def of(cls, model: LanguageModel, nodes: Sequence[Component]) -> Components:
        """The set that some nodes are.

        Raises:
            MechstudyError: they are not all heads, all MLPs or both of some layers, at every name.
        """
        kinds, layers = {type(node) for node in nodes}, sorted({node.layer for node in nodes})
        names = NamedPositions(tuple(dict.fromkeys(node.position for node in nodes)))
        whole = cls(model, names, heads=HeadAt in kinds, mlps=MlpAt in kinds, layers=layers)
        if whole.nodes != tuple(nodes):
            raise MechstudyError(
                f"{len(nodes)} nodes are not the components of {len(layers)} layers at {len(names.names)} positions",
                fix="the effects of mechstudy.components",
            )
        return whole

    def _add(self, site: Site, parts: int, more: Sequence[Component], nodes: list[Component]) -> None:
        self._parts[site] = parts
        self.slices[site] = slice(len(nodes), len(nodes) + len(more))
        nodes += more

    @property
    def reads(self) -> tuple[Site, ...]:
        """The sites whose activations the nodes are."""
        return tuple(self._parts)

    def values(self, activations: Mapping[Site, Tensor]) -> dict[Key, Tensor]:
        """The activations, by site."""
        return {site: activations[site] for site in self._parts}

    def index(self, names: Sequence[Component | str]) -> list[int]:
        """The numbers of nodes.

        Raises:
            MechstudyError: one is not among the nodes.
        """
        numbers = []
        for name in names:
            if (number := self.number.get(component_at(name))) is None:
                raise MechstudyError(
                    f"{name} is not among the components",
                    facts={"first, last": f"{self.nodes[0]}, {self.nodes[-1]}"},
                )
            numbers.append(number)
        return numbers

    def effects(
        self, site: Site, differences: Mapping[Key, Tensor], gradient_BTW: Float[Tensor, "b t w"], donors: Donors
    ) -> Float64[Tensor, "b n"]:
        """Difference x gradient of each of a site's nodes, summed over its coordinates and tokens that have a donor."""
        x_BTP = torch.unflatten((differences[site] * gradient_BTW).double(), -1, (self._parts[site], -1)).sum(-1)
        return summed_by_name(x_BTP, donors, len(self.positions.names)).flatten(1)

    def change(self, site: Site, differences: Mapping[Key, Tensor]) -> Float[Tensor, "b t w"]:
        """The change of a site when all of its nodes are replaced."""
        return differences[site]

    def edits(self, replaced_CN: Bool[Tensor, "c n"], donors: Donors) -> dict[Site, Edit]:
        """Edits that replace nodes, for rows of every circuit with all prompts, one circuit after the other.

        Args:
            replaced_CN: the nodes that each of the circuits replaces.
            donors: of the batch's prompts.
        """
        edits: dict[Site, Edit] = {}
        for site, part in self.slices.items():
            if bool((here_CN := replaced_CN[:, part]).any()):
                here_CPN = torch.unflatten(here_CN, 1, (self._parts[site], -1))
                edits[site] = _replacing(tokens_replaced(here_CPN, donors), donors.values[site])
        return edits


def summed_by_name(x_BTP: Float64[Tensor, "b t p"], donors: Donors, n_names: int) -> Float64[Tensor, "b p n"]:
    """Sums over the tokens of each name, where there is a donor."""
    of_name_BTN = torch.nn.functional.one_hot(donors.position_BT, n_names) * donors.has_BT[..., None]
    return torch.einsum("btp,btn->bpn", x_BTP, of_name_BTN.to(x_BTP))


def tokens_replaced(replaced_CPN: Bool[Tensor, "c p n"], donors: Donors) -> Bool[Tensor, "c b t p"]:
    """Which parts of a site each circuit replaces at each token of each prompt, from those at named positions."""
    replaced_CBTP = replaced_CPN.transpose(1, 2)[:, donors.position_BT]
    return replaced_CBTP & donors.has_BT[..., None]


def _replacing(replaced_CBTP: Tensor, donor_BTW: Tensor) -> Edit:
    def edit(x_RTW: Tensor) -> Tensor:
        circuits, prompts, _, parts = replaced_CBTP.shape
        x = torch.unflatten(torch.unflatten(x_RTW, -1, (parts, -1)), 0, (circuits, prompts))
        donor = torch.unflatten(donor_BTW.to(x), -1, (parts, -1))
        return torch.where(replaced_CBTP[..., None].to(x.device), donor, x).flatten(-2).flatten(0, 1)

    return edit
