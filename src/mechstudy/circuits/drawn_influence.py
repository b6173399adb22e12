"""Influence of nodes, and scores of some of them, in a graph as it is drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
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
    into = _into(graph)
    passed: dict[str, float] = defaultdict(float)
    weights = graph.answer_weights
    for target in _order(into):
        arrived = weights.get(target, 0.0) + passed[target]
        total = sum(into.get(target, {}).values())
        for source, weight in into.get(target, {}).items():
            passed[source] += arrived * weight / total if total > 0 else 0.0
    return {node: passed[node] for node in graph.nodes["node"]}


def drawn_scores(graph: PromptFrames, kept: Collection[str]) -> dict[str, float]:
    """Replacement and completeness of some features of the drawn graph, everything else counted as error.

    Influence flows from the outputs through kept features alone. What comes to a kept node from a token is replaced;
    what comes from anything else that is not kept, errors above all, is not. Biases are left out, as in `influence`.

    Args:
        graph: of one prompt.
        kept: nodes; only features among them count, tokens and outputs always do.

    Formula: `Graph.scores` (Ameisen et al. 2025), over the drawn edges.
    """
    into, kinds = _into(graph), dict(graph.nodes.select("node", "kind").iter_rows())
    through = {node for node in kept if kinds.get(node) == "feature"}
    passed: dict[str, float] = defaultdict(float)
    tokens = errors = total = 0.0
    weights = graph.answer_weights
    for target in _order(into):
        if target not in weights and target not in through:
            continue
        arrived = weights.get(target, 0.0) + passed[target]
        total += arrived
        whole = sum(into.get(target, {}).values())
        for source, weight in into.get(target, {}).items():
            share = arrived * weight / whole if whole > 0 else 0.0
            if source in through:
                passed[source] += share
            elif kinds.get(source) == "token":
                tokens += share
            else:
                errors += share
    both = tokens + errors
    return {
        "replacement": tokens / both if both > 0 else 0.0,
        "completeness": 1 - errors / total if total > 0 else 0.0,
    }


def _into(graph: PromptFrames) -> dict[str, dict[str, float]]:
    """The sizes of the edges into every node, but for those of biases."""
    biases = set(graph.nodes.filter(kind="bias")["node"])
    into: dict[str, dict[str, float]] = {node: {} for node in sorted(graph.nodes["node"])}
    for source, target, weight in sorted(graph.edges.iter_rows()):
        if source not in biases:
            own = into.setdefault(target, {})
            own[source] = own.get(source, 0.0) + abs(weight)
    return into


def _order(into: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Every target before its sources: all of its influence is known when it passes it on."""
    try:
        return list(TopologicalSorter(_targets(into)).static_order())
    except CycleError as error:
        raise MechstudyError(
            "the graph's edges run in a circle", facts={"circle": " -> ".join(map(str, error.args[1]))}
        ) from None


def _targets(into: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """The targets of every node's edges."""
    result: dict[str, list[str]] = {node: [] for node in into}
    for target, sources in into.items():
        for source in sources:
            result.setdefault(source, []).append(target)
    return result
