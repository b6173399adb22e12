"""Attribution methods against known circuits: how well they rank true nodes and edges."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mechstudy.circuits import component_edges, node_attribution
from mechstudy.circuits.components import Components
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.interventions.edge_patching import measure_edge_effects
from mechstudy.interventions.node_patching import measure_effects
from mechstudy.referee.known_circuit import KnownCircuit
from mechstudy.statistics.retrieval import auroc, f1_at_true_size, precision_at

PATCHING = "patching"
NODE_METHODS = (*node_attribution.METHODS, PATCHING)
EDGE_METHODS = (*component_edges.METHODS, PATCHING)
METHODS = tuple(dict.fromkeys((*NODE_METHODS, *EDGE_METHODS)))
NOUGHT = 1e-9  # of the largest score: what counts as no effect, so that roundings are ties
MOST_PATCHED = 400  # nodes that exact patching measures one by one; more take minutes on a real model
_PRECISION_OF = 5


@dataclass(frozen=True)
class RankingScores:
    """How a ranking by size finds a known set; of several sets, the union, and the one that it finds best.

    ``precision_at_5`` is of the five strongest, or of as many as there are true members if those are fewer.
    """

    auroc: float
    f1: float
    precision_at_5: float
    best_auroc: float
    best_f1: float

    @classmethod
    def of(cls, effect_N: Float64[Tensor, " n"], members: Sequence[Bool[Tensor, " n"]]) -> RankingScores:
        """Scores of effects, whose size is what counts.

        Args:
            effect_N: the effects.
            members: each set.
        """
        size_N = effect_N.abs()
        size = torch.where(size_N > NOUGHT * size_N.max(), size_N, 0).numpy()
        sets = [member_N.numpy() for member_N in members]
        union = torch.stack(list(members)).any(0).numpy()
        each = [(auroc(size, one), f1_at_true_size(size, one)) for one in sets]
        k = min(_PRECISION_OF, int(union.sum()))
        values = (auroc(size, union), f1_at_true_size(size, union), precision_at(k, size, union))
        best = (max(a for a, _ in each if a is not None), max(f for _, f in each if f is not None))
        assert None not in values
        return cls(*values, *best)  # type: ignore[arg-type]


def bench(
    circuits: Iterator[KnownCircuit] | Sequence[KnownCircuit],
    methods: Sequence[str] = (),
    *,
    steps: int = 5,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """One row for each circuit and method: of nodes, and of edges where they are known.

    Effects are of replacing by the corrupted prompt's values, means over the training pairs; a ranking is by size.
    Exact patching is left out of circuits with many nodes.

    Args:
        circuits: the circuits.
        methods: of `METHODS`; by default all.
        steps: points of paths of integrated gradients.
        progress: receives progress.

    Yields:
        circuit, kind (node or edge), method, n, n_true, n_circuits, seconds, and the fields of `RankingScores`.

    Raises:
        MechstudyError: an unknown method.
    """
    for method in methods:
        if method not in METHODS:
            raise MechstudyError(
                f"there is no method {method!r}", facts={"methods": ", ".join(METHODS)}, fix=nearest(method, METHODS)
            )
    progress = progress or NullProgress()
    wanted = methods or METHODS
    for circuit in circuits:
        every: list[tuple[Literal["node", "edge"], str]] = [("node", m) for m in NODE_METHODS if m in wanted]
        if circuit.edges:
            every += [("edge", method) for method in EDGE_METHODS if method in wanted]
        every = [(kind, method) for kind, method in every if is_small(circuit) or method != PATCHING]
        with progress.bar(circuit.name, len(every), "rankings") as bar:
            for kind, method in every:
                yield _row(circuit, kind, method, steps)
                bar.advance()


def is_small(circuit: KnownCircuit) -> bool:
    """Whether exact patching of every node and edge takes seconds."""
    return len(circuit.universe.nodes) <= MOST_PATCHED


def _row(circuit: KnownCircuit, kind: Literal["node", "edge"], method: str, steps: int) -> dict[str, Any]:
    began = time.perf_counter()
    if kind == "node":
        effect_N = node_effects(circuit, method, steps=steps)
        members = [circuit.members(one) for one in circuit.circuits]
    else:
        effect_N, is_true = edge_scores(circuit, method, steps=steps)
        members = [is_true]
    seconds = time.perf_counter() - began
    union = torch.stack(members).any(0)
    row = {"circuit": circuit.name, "kind": kind, "method": method, "n": len(effect_N), "n_true": int(union.sum())}
    return row | {"n_circuits": len(members), "seconds": seconds} | vars(RankingScores.of(effect_N, members))


def node_effects(circuit: KnownCircuit, method: str, *, steps: int = 5) -> Float64[Tensor, " n"]:
    """The mean effect of each node of the universe, by one of `NODE_METHODS`."""
    if method == PATCHING:
        return measure_effects(circuit.model, circuit.universe, circuit.train).effects
    return node_attribution.predict_effects(
        circuit.model, circuit.universe, circuit.train, method=method, steps=steps
    ).effects


def edge_scores(
    circuit: KnownCircuit, method: str, *, steps: int = 5
) -> tuple[Float64[Tensor, " e"], Bool[Tensor, " e"]]:
    """The mean effect of each edge at each position, by one of `EDGE_METHODS`, and which edges are true."""
    edges = edge_effects_of(circuit, method, steps=steps)
    return torch.tensor(edges.frame["effect"].to_list(), dtype=torch.float64), circuit.edge_members(edges)


def edge_effects_of(circuit: KnownCircuit, method: str, *, steps: int = 5) -> component_edges.EdgeEffects:
    """The mean effects of edges, by one of `EDGE_METHODS`."""
    assert isinstance(circuit.universe, Components)
    if method == PATCHING:
        return measure_edge_effects(circuit.model, circuit.universe, circuit.train)
    return component_edges.edge_effects(circuit.model, circuit.universe, circuit.train, method=method, steps=steps)


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kind and method the mean of every score over circuits, and how many there are."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["method"]), []).append(row)
    scores = list(RankingScores.__dataclass_fields__)
    return [
        {"kind": kind, "method": method, "circuits": len(some)}
        | {score: sum(row[score] for row in some) / len(some) for score in scores}
        for (kind, method), some in groups.items()
    ]
