"""The strongest edges of a graph that run through attention patterns."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mechstudy.circuits.graph import Graph, Pruned
from mechstudy.circuits.score_rows import score_effects
from mechstudy.models.query_key import QueryKey

_MOST_ROWS = 100

ScoreEdge = tuple[int, int, float]  # row, column and weight


def strongest_score_edges(graph: Graph, pruned: Pruned, scores: Mapping[int, QueryKey], most: int) -> list[ScoreEdge]:
    """At most so many QK edges between nodes of a pruned graph, strongest first.

    Targets are the 100 nodes of largest influence. Strength is the row's influence times the weight as a share of the
    row's other edges.

    Args:
        scores: queries and keys of the prompt, of every layer (`models.query_keys`).
    """
    assert graph.prompt is not None
    _, rows_I = graph.influence
    strength_R = torch.where(pruned.rows_R, rows_I, 0.0)
    rows = strength_R.topk(min(_MOST_ROWS, int((strength_R > 0).sum()))).indices.sort().values
    targets = [graph.targets[row] for row in rows.tolist()]
    kept = pruned.sources_S.nonzero()[:, 0]
    weights_RK = score_effects(graph.prompt, graph.index, targets, scores).cpu()[:, kept]
    tiny = torch.finfo(weights_RK.dtype).tiny
    strength_RK = (rows_I[rows] / graph.sums_R[rows].clamp_min(tiny))[:, None] * weights_RK.abs()
    n = min(most, int((strength_RK > 0).sum()))
    places = strength_RK.flatten().topk(n).indices
    row, column = places // len(kept), places % len(kept)
    return list(zip(rows[row].tolist(), kept[column].tolist(), weights_RK[row, column].tolist(), strict=True))
