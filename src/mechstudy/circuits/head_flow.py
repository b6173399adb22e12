"""The heads that a graph's strongest edges run through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mechstudy.circuits.graph import Graph, Pruned
from mechstudy.circuits.head_loadings import head_loadings

_NUMBERS = 1 << 25  # of the table of loadings
_MOST_EDGES = 500
_LISTED = 5  # heads of an edge
_LEAST = 0.02  # of an edge's absolute parts: a head with less is not listed


@dataclass(frozen=True)
class HeadFlow:
    """Of a prompt's strongest edges.

    ``edges[row, column]`` is an edge's direct part and its largest parts [layer, head, query position, weight], by
    size. ``heads[layer, head, query]`` is the influence that passes that head first: each edge's influence is divided
    among its parts by their sizes. ``keys`` has the key at which that head reads most of it, and how much. ``share`` is
    the part of all edges' influence that these edges have.
    """

    edges: dict[tuple[int, int], dict[str, Any]]
    heads: dict[tuple[int, int, int], float]
    keys: dict[tuple[int, int, int], tuple[int, float]]
    share: float


def head_flow(graph: Graph, pruned: Pruned) -> HeadFlow:
    """Splits the strongest edges of a pruned graph over heads (`head_loadings`)."""
    assert graph.prompt is not None
    _, rows_I = graph.influence
    row_E, at_E = pruned.edges_RK.nonzero(as_tuple=True)
    column_E = pruned.columns_K[at_E]
    influence_E = rows_I[row_E] * graph.shares(pruned.columns_K)[row_E, at_E]
    prompt = graph.prompt
    per_edge = len(prompt.layers) * prompt.layers[0].pattern_QTS.shape[0] * prompt.n_positions
    n = min(len(row_E), _MOST_EDGES, max(1, _NUMBERS // per_edge))
    if n == 0:
        return HeadFlow({}, {}, {}, 0.0)
    strongest = influence_E.topk(n).indices
    row_E, column_E, chosen_I = row_E[strongest], column_E[strongest], influence_E[strongest]
    used, place_E = torch.unique(row_E, return_inverse=True)
    device = prompt.tokens_TD.device
    targets = [graph.targets[row] for row in used.tolist()]
    split = head_loadings(prompt, graph.index, targets, place_E.to(device), column_E.to(device))
    parts = split.loading_ELHT.cpu().flatten(1)
    size_E = (parts.abs().sum(1) + split.direct_E.cpu().abs()).clamp_min(torch.finfo(parts.dtype).tiny)
    values, indices = parts.abs().topk(min(_LISTED, parts.shape[1]), 1)
    _, n_heads, length = split.loading_ELHT.shape[1:]
    edges: dict[tuple[int, int], dict[str, Any]] = {}
    for e, (row, column) in enumerate(zip(row_E.tolist(), column_E.tolist(), strict=True)):
        listed = indices[e][values[e] >= _LEAST * size_E[e]].tolist()
        edges[row, column] = {
            "direct": float(split.direct_E[e]),
            "heads": [[*_place(i, n_heads, length), float(parts[e, i])] for i in listed],
        }
    # An edge's first head reads its source where the source writes: that position is the key.
    key_EK = torch.nn.functional.one_hot(_positions(graph)[column_E], length).to(parts)
    flow_KP = (key_EK * (chosen_I.to(parts) / size_E)[:, None]).T @ parts.abs()
    flow_P, (most_P, key_P) = flow_KP.sum(0), flow_KP.max(0)
    heads: dict[tuple[int, int, int], float] = {}
    keys: dict[tuple[int, int, int], tuple[int, float]] = {}
    for i in flow_P.nonzero()[:, 0].tolist():
        place = _place(i, n_heads, length)
        heads[place], keys[place] = float(flow_P[i]), (int(key_P[i]), float(most_P[i]))
    return HeadFlow(edges, heads, keys, float(chosen_I.sum() / influence_E.sum()))


def _positions(graph: Graph) -> torch.Tensor:
    """The position of every source but biases."""
    every = torch.arange(graph.index.n_positions)
    errors = every.repeat(graph.index.n_layers)
    return torch.cat([graph.feature_position_S[: graph.index.n_features].cpu(), errors, every])


def _place(index: int, n_heads: int, length: int) -> tuple[int, int, int]:
    """Layer, head and query position of a column of the flattened loadings."""
    rest, query = divmod(index, length)
    return (*divmod(rest, n_heads), query)
