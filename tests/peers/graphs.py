"""circuit-tracer's graph and ours, compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.circuits.graph import Graph


@dataclass(frozen=True)
class Compared:
    """Two graphs. ``rows`` are those of features: ours, theirs, and how many both have.

    ``difference_RC`` is |ours - theirs| of the entries both have, logits' rows first, as a share of the largest of
    their row; columns are features with a row, errors by layer and position, and tokens.
    """

    same_active: bool
    same_logits: bool
    rows: tuple[int, int, int]
    difference_RC: Tensor

    @property
    def of_token_0(self) -> int:
        """Column of the first token."""
        return self.difference_RC.shape[1] - self._n_tokens

    _n_tokens: int


def compared(graph: Graph, theirs: dict[str, Tensor]) -> Compared:
    """Our graph and the one that the worker has written."""
    x, n = graph.index, len(graph.logits)
    active = torch.stack([graph.feature_layer_S, graph.feature_position_S, graph.feature_id_S], 1)
    selected, T = theirs["selected"], theirs["adjacency"]
    place = torch.full((x.n_features,), -1)
    place[selected] = torch.arange(len(selected))
    columns = graph.column_R[n:]
    both = place[columns] >= 0
    A = torch.cat([graph.A_RS[:n], graph.A_RS[n:][both]])
    A = torch.cat([A[:, selected], A[:, x.errors : x.biases]], 1)
    B = torch.cat([T[-n:], T[place[columns[both]]]])[:, : A.shape[1]]
    return Compared(
        torch.equal(active, theirs["active"]),
        [node.token for node in graph.logits] == theirs["logits"].tolist(),
        (len(columns), len(selected), int(both.sum())),
        (A - B).abs() / B.abs().amax(1, keepdim=True),
        x.n_positions,
    )
