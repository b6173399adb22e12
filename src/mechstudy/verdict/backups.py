"""Self-repair: nodes that take over when a circuit is replaced, found by replacing both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mechstudy.circuits.effects_table import EffectsTable

MOST = 10  # backups that are replaced together
NEGLIGIBLE = 0.01  # of what the strongest backup takes over


@dataclass(frozen=True)
class Backups:
    """The nodes outside a circuit whose predicted effect grows most when it is replaced.

    Attributes:
        nodes: their numbers, the strongest first.
        alone: of each, the predicted effect of replacing it in the whole model.
        beside: the same, with the circuit replaced already.
    """

    nodes: tuple[int, ...]
    alone: tuple[float, ...]
    beside: tuple[float, ...]

    def record(self, names: Sequence[Any], lost: dict[str, float | None]) -> dict[str, Any]:
        """As it is written to ``verdict.json``; ``lost`` are the measured shares of replacing them."""
        rows = [
            {"node": str(names[i]), "alone": alone, "beside": beside}
            for i, alone, beside in zip(self.nodes, self.alone, self.beside, strict=True)
        ]
        return {"nodes": rows, **lost}


def backups(alone: EffectsTable, beside: EffectsTable, members: Sequence[int]) -> Backups:
    """Nodes that support the answer more with the circuit replaced than in the whole model.

    A single ablation does not find them: what they do is done already (2607.01940).

    Args:
        alone: effects of each node in the whole model, by the method of ``beside``.
        beside: effects with the members replaced (``given`` of `circuits.predict_effects`).
        members: of the circuit.
    """
    growth_N = alone.effects - beside.effects  # supporters have negative effects
    growth_N[list(members)] = 0
    order = torch.sort(growth_N, descending=True, stable=True).indices[:MOST].tolist()
    least = NEGLIGIBLE * max(float(growth_N.max()), 0.0)
    nodes = tuple(i for i in order if growth_N[i] > least and beside.effects[i] < 0)
    return Backups(nodes, *(tuple(float(t.effects[i]) for i in nodes) for t in (alone, beside)))
