"""A graph's sizes and scores, as scores.json has them."""

from __future__ import annotations

from typing import Any

from mechstudy.circuits.graph import Graph, Pruned


def graph_score(graph: Graph, pruned: Pruned) -> dict[str, Any]:
    """Sizes and scores of a graph before and after pruning."""
    before, after, among_rows = graph.scores(), graph.scores(pruned), graph.scores_among_rows()
    gaps = {} if graph.difference is None else {"path_gap": path_gaps(graph)}
    return gaps | {
        "n_features_active": graph.index.n_features,
        "n_features_expanded": len(graph.column_R) - len(graph.logits),
        "n_nodes": graph.index.biases + len(graph.logits),
        "n_edges": int((graph.A_RS[:, : graph.index.biases] != 0).sum()),
        "n_nodes_pruned": pruned.n_nodes,
        "n_edges_pruned": pruned.n_edges,
        "replacement": before.replacement,
        "completeness": before.completeness,
        "replacement_pruned": after.replacement,
        "completeness_pruned": after.completeness,
        "replacement_among_rows": among_rows.replacement,
        "completeness_among_rows": among_rows.completeness,
        "conservation_residual_max": graph.conservation_residual_max(),
    }


def path_gaps(graph: Graph) -> dict[str, float | None]:
    """What rows of a difference miss: the target's as a share of its value, others of their absolute contributions."""
    ledger, rows_R = graph.target_ledger(), graph.gaps_R()[len(graph.logits) :]
    return {
        "target": abs(ledger.residual) / abs(ledger.target) if ledger.target else None,
        "median_row": float(rows_R.median()) if len(rows_R) else None,
        "worst_row": float(rows_R.max()) if len(rows_R) else None,
    }
