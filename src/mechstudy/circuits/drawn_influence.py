"""Influence of nodes in a graph as it is drawn, for files that record none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from mechstudy.circuits.graph_frames import PromptFrames
from mechstudy.core.errors import MechstudyError


def drawn_influence(graph: PromptFrames) -> dict[str, float]:
    """Influence of every node on the outputs, through the edges of the pruned graph.

    ``I(s) = sum over targets t of |w(s, t)| / sum_s |w(s, t)| (a(t) + I(t))`` with ``a`` the outputs' weights: the
    series ``a A^ + a A^^2 + ...`` of `influence` (Ameisen et al. 2025), A^ the drawn edges. Biases are left out. What
    pruning cut is in no sum, so numbers are somewhat larger than those of the whole graph.

    Raises:
        MechstudyError: edges run in a circle.
    """
    biases = set(graph.nodes.filter(kind="bias")["node"])
    into: dict[str, dict[str, float]] = {node: {} for node in sorted(graph.nodes["node"])}
    for source, target, weight in sorted(graph.edges.iter_rows()):
        if source not in biases:
            own = into.setdefault(target, {})
            own[source] = own.get(source, 0.0) + abs(weight)
    # Every target stands before its sources: all of its influence is known when it passes it on.
    try:
        order = list(TopologicalSorter(_targets(into)).static_order())
    except CycleError as error:
        raise MechstudyError(
            "the graph's edges run in a circle", facts={"circle": " -> ".join(map(str, error.args[1]))}
        ) from None
    passed: dict[str, float] = defaultdict(float)
    weights = graph.answer_weights
    for target in order:
        arrived = weights.get(target, 0.0) + passed[target]
        total = sum(into.get(target, {}).values())
        for source, weight in into.get(target, {}).items():
            passed[source] += arrived * weight / total if total > 0 else 0.0
    return {node: passed[node] for node in graph.nodes["node"]}


def _targets(into: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """The targets of every node's edges."""
    result: dict[str, list[str]] = {node: [] for node in into}
    for target, sources in into.items():
        for source in sources:
            result.setdefault(source, []).append(target)
    return result
