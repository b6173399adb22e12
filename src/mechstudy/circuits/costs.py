"""What the attribution graph of one prompt needs: rows, their backward pass, and the choice among them. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from mechstudy.models.shapes import ModelShapes

_ROWS_AT_ONCE = 256  # that are chosen
_COMPUTED = 128  # of these, in one pass
_BUFFERS = 4  # arrays of gradients of a pass that are alive at a time
_PASSES = 10  # over a row's gradient in every layer: norms, additions, copies
_ROWS_OF_HEADS = 200  # of 500 edges, about
_ROWS_OF_SCORES = 100
_ROUNDS = 20  # of the influence's power series


@dataclass(frozen=True)
class _Table:
    """A table with a row of numbers for each of some things, cut where it grows beyond a size."""

    things: int
    largest: int

    def of(self, rows: int, width: int) -> int:
        return min(min(rows, self.things) * width, self.largest)


_LOADINGS = _Table(500, 1 << 25)  # `head_flow`: heads and queries of the strongest edges
_SCORES = _Table(_ROWS_OF_SCORES, 1 << 26)  # `score_rows`: effects of scores on targets


@dataclass(frozen=True)
class GraphCost:
    """Of one prompt: rows, FLOPs, bytes of arrays passed over, blocks gone through, bytes of the working set."""

    rows: int
    flops: float
    moved: float
    calls: float
    memory: int


def graph_cost(
    x: ModelShapes,
    *,
    n_layers: int,
    d_in: int,
    n_features: int,
    k: int,
    with_skip: bool,
    max_features: int,
    tokens: int,
    n_written: int = 1,
    neurons: int = 0,
    points: int = 0,
) -> GraphCost:
    """The cost of a prompt of ``tokens`` tokens with such dictionaries on ``n_layers`` layers.

    ``n_written``: layers that a feature writes to, on average. ``neurons``: those that are nodes, of all layers.
    ``points``: of the path, where the graph explains a difference: rows are computed at each, queries and keys live.
    """
    active = min(k, n_features) * tokens * n_layers + min(neurons, tokens * x.d_mlp * x.n_layers)
    rows = min(max_features, active) + 1
    heads = x.head_dim * (x.n_heads + x.n_kv_heads)
    # A row passes the layers below the feature it explains: half of them.
    per_row = tokens * x.d_model * heads * x.n_layers + 2.0 * active * n_written * x.d_model
    if with_skip:
        per_row += tokens * x.d_model**2 * n_layers
    # Heads of the strongest edges and edges through patterns take the backward pass of some rows again.
    passes = rows + min(rows, _ROWS_OF_HEADS) + 3 * min(rows, _ROWS_OF_SCORES)
    if points:
        passes, per_row = rows * points, 2 * per_row
    sources = active + (x.n_layers + 1) * tokens
    batches = -(-rows // _ROWS_AT_ONCE)
    influence = batches * _ROUNDS * float(rows * sources)
    encoding = 2.0 * tokens * d_in * n_features * n_layers
    if neurons:  # MLPs as linear maps, and a gradient through each
        encoding += 12.0 * tokens * x.d_model * x.d_mlp * x.n_layers
    moved = passes * tokens * x.d_model * 4.0 * _PASSES * x.n_layers / 2 + 10 * 4.0 * influence / _ROUNDS
    together = min(rows, _COMPUTED)
    numbers = (
        (rows + together) * sources
        + _BUFFERS * together * tokens * x.d_model
        + n_written * active * x.d_model
        + (6 * x.d_model + x.n_heads * tokens) * tokens * x.n_layers
        + _LOADINGS.of(rows, x.n_layers * x.n_heads * tokens)
        + 2 * _SCORES.of(rows, x.n_heads * tokens**2)
    )
    calls = batches * x.n_layers * max(1, points)
    return GraphCost(rows, passes * per_row + influence + encoding, moved, calls, 4 * numbers)
