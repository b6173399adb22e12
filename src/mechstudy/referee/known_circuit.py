"""Models whose circuit is known: prompts, a universe of nodes, true nodes and edges, and what tests that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.component_edges import EdgeEffects
from mechstudy.circuits.components import Components
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.edge_patching import measure_edge_effects
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.models.language_model import LanguageModel

TOLERANCE = 1e-3  # of the effect of all nodes: what nodes outside of a circuit may change, unless a circuit says more
NEEDED = 1e-2  # of the same: what every node and edge of a circuit must change


@dataclass(frozen=True, order=True)
class EdgeAt:
    """A component that reads another's output at a named position; prints as ``head.0.1 -> logits@last``."""

    source: str
    target: str
    position: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}@{self.position}"


@dataclass(frozen=True)
class CircuitCheck:
    """What a test of a known circuit measured, as shares of the effect of replacing every node.

    ``kept``: the largest change on a prompt when only the true nodes are kept. ``removed``: the smallest mean change
    when one of them is replaced. ``edge_outside``: the largest mean change when another edge is replaced, and
    ``edge_inside`` the smallest of a true one; None where edges were not tested. ``active``: the share of nodes
    outside of the circuit that differ between clean and corrupted prompts. ``tolerance``: what ``kept`` and
    ``edge_outside`` may be.
    """

    kept: float
    removed: float
    active: float
    edge_outside: float | None = None
    edge_inside: float | None = None
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether the circuit is what the model computes with, within ``tolerance`` and `NEEDED`."""
        edges_hold = (
            self.edge_outside is None
            or self.edge_inside is None
            or (self.edge_outside <= self.tolerance and self.edge_inside >= NEEDED)
        )
        return self.kept <= self.tolerance and self.removed >= NEEDED and edges_hold


@dataclass(frozen=True)
class KnownCircuit:
    """A model, its behaviour, and the circuit that the behaviour runs through.

    ``universe`` are the nodes that methods rank. ``circuits`` are the sets of true nodes: one, or, where they were
    ``enumerated``, every minimal set that is enough to keep the answers right (`boolean_mlps`). ``edges`` are true
    edges between components, empty where none are known. ``about`` says in a sentence what the circuit does.
    ``tolerance`` is what nodes and edges outside of the circuit may change: more than `TOLERANCE` where training makes
    a circuit that is only nearly all.
    """

    name: str
    about: str
    model: LanguageModel
    universe: NodeSet
    circuits: tuple[frozenset[Any], ...]
    train: tuple[PromptPair, ...]
    test: tuple[PromptPair, ...]
    edges: frozenset[EdgeAt] = field(default_factory=frozenset)
    enumerated: bool = False
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        missing = sorted(str(node) for node in self.nodes - set(self.universe.nodes))
        if missing or not self.nodes:
            raise MechstudyError(
                f"{missing[0] if missing else 'no node'} is among the true nodes of {self.name}",
                facts={"nodes": f"{len(self.universe.nodes)}, from {self.universe.nodes[0]}"},
                fix="true nodes that are nodes of the universe, at least one",
            )

    @property
    def nodes(self) -> frozenset[Any]:
        """The true nodes; of several circuits those of any."""
        return frozenset[Any]().union(*self.circuits)

    def members(self, circuit: frozenset[Any] | None = None) -> Bool[Tensor, " n"]:
        """Which nodes of the universe belong to a circuit, by default to any."""
        wanted = self.nodes if circuit is None else circuit
        return torch.tensor([node in wanted for node in self.universe.nodes])

    def edge_members(self, edges: EdgeEffects) -> Bool[Tensor, " e"]:
        """Which rows of the edges' frame are true edges.

        Raises:
            MechstudyError: a true edge is not among the rows.
        """
        frame = edges.frame
        rows = [EdgeAt(*row) for row in zip(frame["source"], frame["target"], frame["position"], strict=True)]
        if missing := sorted(self.edges - set(rows)):
            raise MechstudyError(f"the true edge {missing[0]} is not among the edges of {self.name}")
        return torch.tensor([row in self.edges for row in rows])

    def kept(self, keep_CN: Bool[Tensor, "c n"], pairs: Sequence[PromptPair] = ()) -> Float64[Tensor, "c p"]:
        """The answers' contrast when only some nodes are kept and all others hold the corrupted prompt's values.

        Args:
            keep_CN: the nodes of each circuit.
            pairs: the prompts, by default ``test``.
        """
        pairs = list(pairs or self.test)
        corrupted = DonorSource(self.model, [self.universe], "corrupted", self.universe.positions)
        return keep_only_values(self.model, pairs, self.universe, keep_CN, corrupted)

    def kept_change(self, pairs: Sequence[PromptPair] = ()) -> float:
        """`CircuitCheck.kept`: the largest change of a prompt's contrast when only the true nodes are kept.

        Args:
            pairs: the prompts, by default ``test``.
        """
        true_N = self.members()
        keep_CN = torch.stack([torch.ones_like(true_N), torch.zeros_like(true_N), true_N])
        every_P, none_P, kept_P = self.kept(keep_CN, pairs)
        return float((kept_P - every_P).abs().max() / (every_P - none_P).abs().mean())

    def check(self, pairs: Sequence[PromptPair] = (), *, edges: bool = True) -> CircuitCheck:
        """Tests the circuit by replacing nodes by the corrupted prompt's values, and edges likewise.

        Args:
            pairs: the prompts, by default ``test``.
            edges: test the true edges too, by exact patching of all: for small models.

        Raises:
            MechstudyError: the circuits were enumerated, by keeping each alone.
        """
        if self.enumerated or len(self.circuits) != 1:
            raise MechstudyError(f"the circuits of {self.name} were found by keeping each alone: no test is left")
        pairs, true_N = list(pairs or self.test), self.members()
        n = len(true_N)
        without = torch.ones(int(true_N.sum()), n, dtype=torch.bool)
        without[torch.arange(len(without)), true_N.nonzero().flatten()] = False
        keep_CN = torch.stack([torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool), true_N])
        value_CP = self.kept(torch.cat([keep_CN, without]), pairs)
        every_P, none_P, kept_P = value_CP[:3]
        scale = float((every_P - none_P).abs().mean())
        if scale == 0:
            raise MechstudyError(f"replacing every node of {self.name} changes nothing")
        outside = inside = None
        if edges and self.edges and isinstance(self.universe, Components):
            measured = measure_edge_effects(self.model, self.universe, pairs)
            effect_E, is_true_E = torch.tensor(measured.frame["effect"].to_list()).abs(), self.edge_members(measured)
            outside, inside = float(effect_E[~is_true_E].max()) / scale, float(effect_E[is_true_E].min()) / scale
        return CircuitCheck(
            float((kept_P - every_P).abs().max()) / scale,
            float((value_CP[3:] - every_P).abs().mean(1).min()) / scale,
            self._active(pairs, ~true_N),
            outside,
            inside,
            self.tolerance,
        )

    @torch.no_grad()
    def _active(self, pairs: Sequence[PromptPair], of_N: Tensor) -> float:
        """The share of these nodes that differ between clean and corrupted on some pair, by a hundredth of their size.

        Of sets of nodes other than components it is that of nothing: 0.
        """
        nodes = self.universe
        if not isinstance(nodes, Components):
            return 0.0
        changed_N = torch.zeros(len(nodes.nodes), dtype=torch.bool)
        corrupted = DonorSource(self.model, [nodes], "corrupted", nodes.positions)
        for pair in pairs:
            clean = self.model.forward(
                torch.tensor([pair.clean_tokens]), capture=list(nodes.reads), logits_at=None
            ).activations
            there = corrupted.donors([pair])
            for site, part in nodes.slices.items():
                names = len(nodes.positions.names)
                shape = ((part.stop - part.start) // names, -1)
                own, other = (torch.unflatten(x[site][0], -1, shape) for x in (clean, there.values))
                differs_TP = (own - other).norm(dim=-1) > 0.01 * own.norm(dim=-1)
                for name in range(names):
                    at_T = (there.position_BT[0] == name) & there.has_BT[0]
                    changed_N[part.start + name : part.stop : names] |= differs_TP[at_T].any(0).cpu()
        return float(changed_N[of_N].double().mean())
