"""Runs in which nodes hold values between those of two runs: points of the straight path from one to the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from jaxtyping import Float
from torch import Tensor

from mechstudy.circuits.node_sets import Nodes
from mechstudy.circuits.node_values import NodeValues
from mechstudy.models.language_model import Edit
from mechstudy.models.reading import SiteReader, chained
from mechstudy.models.sites import Site


@dataclass(frozen=True)
class HeldPath:
    """Nodes, features and errors alike, with their values at the start (``own``) and at the end (``other``).

    ``whole`` are further sites that are held, with what they hold at the start and at the end, [T, D]: token embeddings
    or MLPs that are no nodes. Everything else responds, skip paths too.
    """

    nodes: Mapping[int, Nodes]
    own: NodeValues
    other: NodeValues
    whole: Mapping[Site, tuple[Float[Tensor, "t d"], Float[Tensor, "t d"]]] = field(default_factory=dict)

    @property
    def sites(self) -> list[Site]:
        """The sites that nodes write, in order."""
        return written_sites(self.nodes)

    def edits(
        self, share_B11: Float[Tensor, "b 1 1"], leaves: Mapping[Site, Float[Tensor, "b t w"]] | None = None
    ) -> dict[Site, Edit]:
        """Edits of a run whose rows are at these shares of the way.

        Args:
            leaves: tensors to add where nodes write, by site.
        """
        leaves = leaves or {}
        owner = {one.site: layer for layer, one in self.nodes.items()}
        edits: dict[Site, list[Edit]] = defaultdict(list)
        for site, (start_TD, end_TD) in self.whole.items():
            edits[site].append(_set(start_TD + share_B11 * (end_TD - start_TD)))
        for site in self.sites:
            more = leaves.get(site, 0.0)
            if site in owner:
                layer = owner[site]
                start_TD = self.own.written_TD(layer)
                value_BTD = start_TD + share_B11 * (self.other.written_TD(layer) - start_TD) + more
                edits[site].append(_held(self.nodes[layer], value_BTD, self.own.applies_T[layer], edits))
            elif site not in self.whole:
                edits[site].append(_moved(share_B11 * self._written_from_below(site) + more))
        return {site: chained(some) for site, some in edits.items()}

    def _written_from_below(self, site: Site) -> Tensor:
        """Change of what features of lower layers write at a site that is no layer's own, [T, D]."""
        total: list[Tensor] = []
        for layer, one in self.nodes.items():
            if site in one.writes_at:
                change_TF = self.other.activation_TF[layer] - self.own.activation_TF[layer]
                columns = change_TF.any(0).nonzero()[:, 0]
                vectors_CD = one.vectors(columns)[one.writes_at.index(site)]
                total.append(change_TF[:, columns] @ vectors_CD.to(change_TF))
        return reduce(add, total)


def written_sites(nodes: Mapping[int, Nodes]) -> list[Site]:
    """The sites that features write, in order."""
    return sorted({site for one in nodes.values() for site in one.writes_at})


def midpoints(steps: int) -> list[float]:
    """The middles of equal steps from 0 to 1, which the midpoint rule takes."""
    return [(step + 0.5) / steps for step in range(steps)]


def _set(value_BTD: Tensor) -> Edit:
    return lambda _x_BTD: value_BTD


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
