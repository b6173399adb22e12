"""Attention heads and MLPs at named positions as nodes: names, activations, and what replaces them in a run."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechstudy.circuits.donors import Donors, Key
from mechstudy.circuits.named_positions import ALL, NamedPositions
from mechstudy.circuits.universe import Shares, at_tokens, change_of, is_replaced
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


def anywhere(node: Component) -> Component:
    """The component at every position."""
    return replace(node, position=ALL)


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

    @property
    def writes(self) -> tuple[Site, ...]:
        """The same sites."""
        return self.reads

    def edits(self, share_RN: Shares, donors: Donors, sites: Collection[Site] | None = None) -> dict[Site, Edit]:
        """Edits that replace nodes (`NodeSet.edits`)."""
        edits: dict[Site, Edit] = {}
        for site, part in self.slices.items():
            here_RN = share_RN[:, part]
            if is_replaced(here_RN) and (sites is None or site in sites):
                here_RPN = torch.unflatten(here_RN, 1, (self._parts[site], -1))
                edits[site] = _replacing(site, at_tokens(here_RPN, donors), donors)
        return edits


def _replacing(site: Site, share_RTP: Tensor, donors: Donors) -> Edit:
    parts, prompts = share_RTP.shape[-1], len(donors.has_BT)

    def by_circuit(x_RTW: Tensor) -> Tensor:
        return torch.unflatten(torch.unflatten(x_RTW, -1, (parts, -1)), 0, (-1, prompts))

    def edit(x_RTW: Tensor) -> Tensor:
        share, donor = by_circuit(share_RTP.to(x_RTW.device)), by_circuit(donors.values[site].to(x_RTW))
        x = by_circuit(x_RTW)
        if share.dtype is torch.bool:
            edited = torch.where(share, donor, x)
        else:
            edited = x + change_of(share, donor, by_circuit((donors.relative_to or {site: x_RTW})[site]))
        return edited.flatten(-2).flatten(0, 1)

    return edit
