"""Sets of nodes that are ranked, replaced and kept together, and several such sets as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechstudy.circuits.donors import Donors, Key, Recorded
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import Edit
from mechstudy.models.reading import merged
from mechstudy.models.sites import Site

Shares = Bool[Tensor, "r n"] | Float[Tensor, "r n"]
"""How much of each node a row's run replaces: true or false, or from 0 to 1 with a gradient."""


@runtime_checkable
class NodeSet(Recorded, Protocol):
    """Nodes at named positions that runs replace, such as `Components` and `interventions.FeatureNodes`."""

    @property
    def nodes(self) -> tuple[Any, ...]:
        """The nodes, which print as their names."""

    @property
    def positions(self) -> NamedPositions:
        """The positions that nodes are at."""

    @property
    def slices(self) -> Mapping[Site, slice]:
        """The nodes whose own site each is; together all nodes in order."""

    @property
    def writes(self) -> Collection[Site]:
        """Every site that replacing nodes changes."""

    def edits(self, share_RN: Shares, donors: Donors, sites: Collection[Site] | None = None) -> dict[Site, Edit]:
        """Edits that replace each node by its share of the donor's value.

        Rows are all prompts of the donors, once for each circuit, circuit by circuit. What a node holds is computed in
        the running pass, unless the donors say what they are taken relative to. True or false shares give no edit where
        nothing is replaced, and a kept node's site keeps its bits.

        Args:
            share_RN: of every row.
            donors: of the prompts.
            sites: edit only nodes of these sites.
        """


class NodeSets:
    """Several sets of nodes at the same positions as one, in order; no two may change one site.

    Raises:
        MechstudyError: two sets change one site, or positions differ.
    """

    def __init__(self, sets: Sequence[NodeSet]) -> None:
        self._sets = tuple(sets)
        self.nodes: tuple[Any, ...] = tuple(node for one in sets for node in one.nodes)
        self.reads: tuple[Site, ...] = tuple(dict.fromkeys(site for one in sets for site in one.reads))
        self.positions = sets[0].positions
        self.slices: dict[Site, slice] = {}
        self.writes: set[Site] = set()
        first = 0
        for one in sets:
            if one.positions != self.positions:
                raise MechstudyError("two sets of nodes have other positions", fix="one NamedPositions for all")
            if both := self.writes & set(one.writes):
                raise MechstudyError(
                    f"two sets of nodes change {min(both)}",
                    fix="no MLP components in layers whose features or errors are nodes",
                )
            self.slices |= {site: slice(first + x.start, first + x.stop) for site, x in one.slices.items()}
            self.writes |= set(one.writes)
            first += len(one.nodes)

    def values(self, activations: Mapping[Site, Tensor]) -> dict[Key, Tensor]:
        """The values of all sets."""
        return {key: value for one in self._sets for key, value in one.values(activations).items()}

    def edits(self, share_RN: Shares, donors: Donors, sites: Collection[Site] | None = None) -> dict[Site, Edit]:
        """The edits of all sets."""
        parts = torch.split(share_RN, [len(one.nodes) for one in self._sets], 1)
        return merged([one.edits(part_RN, donors, sites) for one, part_RN in zip(self._sets, parts, strict=True)])


def at_tokens(share_RPN: Tensor, donors: Donors) -> Tensor:
    """The share of each part of a site at every token [R, T, P], from those at names; 0 where there is no donor."""
    position_RT, has_RT = (x.repeat(len(share_RPN) // len(x), 1) for x in (donors.position_BT, donors.has_BT))
    if share_RPN.dtype is torch.bool:
        rows_R1 = torch.arange(len(share_RPN))[:, None]
        return share_RPN.transpose(1, 2)[rows_R1, position_RT] & has_RT[..., None]
    of_name_RTN = torch.nn.functional.one_hot(position_RT, share_RPN.shape[2]) * has_RT[..., None]
    return torch.einsum("rpn,rtn->rtp", share_RPN, of_name_RTN.to(share_RPN))


def change_of(share: Tensor, donor: Tensor, held: Tensor) -> Tensor:
    """What replacing a share of a value by the donor's adds to it: exactly 0 of what is kept."""
    difference = donor - held
    share = share.to(held.device)
    return torch.where(share, difference, 0) if share.dtype is torch.bool else share * difference


def is_replaced(share_RN: Tensor) -> bool:
    """Whether some row replaces something; shares with a gradient are taken to."""
    return share_RN.dtype is not torch.bool or bool(share_RN.any())
