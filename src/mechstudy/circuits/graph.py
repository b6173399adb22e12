"""The attribution graph of one prompt, and its pruning."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from mechstudy.circuits.active_nodes import ActiveNeurons
from mechstudy.circuits.influence import feature_rows, influence, propagated, row_sums, total_effects
from mechstudy.circuits.linear_prompt import LinearisedPrompt
from mechstudy.circuits.rows import SourceIndex, Target


@dataclass(frozen=True)
class Ledger:
    """Contributions to one target by kind of source; their ``total`` must equal ``target``."""

    features: float
    errors: float
    tokens: float
    biases: float
    target: float

    @property
    def total(self) -> float:
        """Sum over all sources."""
        return self.features + self.errors + self.tokens + self.biases

    @property
    def residual(self) -> float:
        """Total minus target; 0 but for rounding."""
        return self.total - self.target


@dataclass(frozen=True)
class Source:
    """What a column of the matrix is.

    Errors have no ``feature``; tokens (``feature`` is then the token id) have no ``layer``; biases have no
    ``position``: those of layers, then the embedding's (layer L) and the target's own (layer L + 1).
    """

    type: Literal["feature", "error", "token", "bias"]
    layer: int | None
    feature: int | None
    position: int | None


@dataclass(frozen=True)
class LogitNode:
    """A logit target: its token, its probability, its label and, unless it is the last, its position."""

    token: int
    probability: float
    label: str
    position: int | None = None


@dataclass(frozen=True)
class Difference:
    """Of a graph that explains the difference of two prompts: what each feature's activation differs by.

    It is clean minus corrupted. ``steps`` is the number of points of the path between the two.
    """

    change_S: Tensor
    steps: int


@dataclass
class Graph:
    """Direct effects of one prompt: R rows (logits first, then expanded features), S sources.

    ``column_R`` is the source column of the feature a row explains, -1 for logits; ``feature_layer_S``,
    ``feature_position_S``, ``feature_id_S`` and ``activation_S`` describe the feature columns. ``summed``: the logit
    rows add up to one target. ``prompt`` and ``targets`` are what the rows were computed from, absent in the graph of a
    ``difference``, whose rows are of differences between the clean and the corrupted prompt.
    """

    tokens: tuple[int, ...]
    index: SourceIndex
    A_RS: Tensor
    weights_R: Tensor
    column_R: Tensor
    value_R: Tensor
    logits: tuple[LogitNode, ...]
    feature_layer_S: Tensor
    feature_position_S: Tensor
    feature_id_S: Tensor
    activation_S: Tensor
    summed: bool = False
    prompt: LinearisedPrompt | None = None
    targets: tuple[Target, ...] = ()
    difference: Difference | None = None

    # ------------------------------------------------------------------ columns

    def sources(self) -> list[Source]:
        """What every column is: features, errors [L x T], tokens [T], biases [L + 2]."""
        x = self.index
        places = zip(
            self.feature_layer_S.tolist(), self.feature_id_S.tolist(), self.feature_position_S.tolist(), strict=True
        )
        sources = [Source("feature", layer, feature, position) for layer, feature, position in places]
        sources += [Source("error", layer, None, at) for layer in range(x.n_layers) for at in range(x.n_positions)]
        sources += [Source("token", None, token, position) for position, token in enumerate(self.tokens)]
        return sources + [Source("bias", layer, None, None) for layer in range(x.n_layers + 2)]

    @property
    def expanded_S(self) -> Tensor:
        """Feature columns that have a row of their own, [S] bool."""
        mask = torch.zeros(self.index.n_sources, dtype=torch.bool)
        mask[self.column_R[self.column_R >= 0]] = True
        return mask

    @property
    def token_S(self) -> Tensor:
        """Token columns, [S] bool."""
        mask = torch.zeros(self.index.n_sources, dtype=torch.bool)
        mask[self.index.token_slice] = True
        return mask

    @property
    def not_bias_S(self) -> Tensor:
        """Columns that are no biases, [S] bool."""
        mask = torch.ones(self.index.n_sources, dtype=torch.bool)
        mask[self.index.biases :] = False
        return mask

    @property
    def neuron_layers(self) -> list[int]:
        """Layers whose nodes are neurons."""
        layers = () if self.prompt is None else self.prompt.layers
        return [number for number, layer in enumerate(layers) if isinstance(layer.nodes, ActiveNeurons)]

    # ------------------------------------------------------------- conservation

    def ledger(self, row: int) -> Ledger:
        """Contributions to the row's target by kind of source."""
        a, x = self.A_RS[row].double(), self.index
        return Ledger(
            float(a[: x.errors].sum()),
            float(a[x.errors : x.tokens].sum()),
            float(a[x.token_slice].sum()),
            float(a[x.biases :].sum()),
            float(self.value_R[row]),
        )

    def target_ledger(self) -> Ledger:
        """The ledger of the first target, or of the sum that the targets add up to."""
        if not self.summed:
            return self.ledger(0)
        rows = [self.ledger(row) for row in range(len(self.logits))]
        return Ledger(*(sum(values) for values in zip(*map(astuple, rows), strict=True)))

    def conservation_residual_max(self) -> float:
        """Largest |sum of a row - its target's value| / |the value| over all rows, summed in float64.

        Logit rows that add up to one target count as one.
        """
        value, total = self.value_R.double(), self.A_RS.double().sum(1)
        if self.summed:
            n = len(self.logits)
            value, total = (torch.cat([x[:n].sum()[None], x[n:]]) for x in (value, total))
        return float(((total - value).abs() / value.abs().clamp_min(1e-30)).max())

    def gaps_R(self) -> Tensor:
        """Of every row: what its sum misses of the target's value, as a share of its absolute contributions, [R]."""
        gap = self.A_RS.double().sum(1) - self.value_R.double()
        return gap.abs() / self.A_RS.double().abs().sum(1).clamp_min(1e-30)

    # ---------------------------------------------------------------- influence

    @cached_property
    def sums_R(self) -> Tensor:
        """Sum of |A| over a row's columns that are no biases."""
        return row_sums(self.A_RS, self.not_bias_S)

    @cached_property
    def influence(self) -> tuple[Tensor, Tensor]:
        """Influence of the unpruned graph's sources [S] and rows [R]."""
        return influence(self.A_RS, self.not_bias_S, self.weights_R, self.column_R, self.sums_R)

    @cached_property
    def total_effects_S(self) -> Tensor:
        """Signed first-order effects on the target through every path, [S]."""
        return total_effects(self.A_RS, self.weights_R, self.column_R, self.value_R)

    def shares(self, columns: Tensor) -> Tensor:
        """|A| as a share of its row, for some columns."""
        return self.A_RS[:, columns].abs() / self.sums_R.clamp_min(torch.finfo(self.A_RS.dtype).tiny)[:, None]

    def scores(self, pruned: Pruned | None = None) -> Scores:
        """Scores before pruning, or of the pruned graph with everything cut counted as error."""
        if pruned is None:
            columns = (self.expanded_S | self.token_S).nonzero()[:, 0]
            return self._scores(columns, self.shares(columns))
        real_K = (self.expanded_S | self.token_S)[pruned.columns_K]
        columns = pruned.columns_K[real_K]
        return self._scores(columns, (self.shares(pruned.columns_K) * pruned.edges_RK)[:, real_K])

    def scores_among_rows(self) -> Scores:
        """Scores as circuit-tracer counts them, comparable with those of its users' papers.

        Features and neurons without a row are left out, where `scores` counts them as error, and completeness counts
        tokens and errors, which nothing flows into, among the nodes without error.
        """
        errors = torch.zeros_like(self.token_S)
        errors[self.index.errors : self.index.tokens] = True
        for layer in self.neuron_layers:  # what is left there are other neurons, and no error
            errors[self.index.error_slice(layer)] = False
        real_S = self.expanded_S | self.token_S
        sums_R = row_sums(self.A_RS, real_S | errors).clamp_min(torch.finfo(self.A_RS.dtype).tiny)
        columns = real_S.nonzero()[:, 0]
        return self._scores(columns, self.A_RS[:, columns].abs() / sums_R[:, None], leaves=True)

    def _scores(self, columns_K: Tensor, shares_RK: Tensor, *, leaves: bool = False) -> Scores:
        """Scores of the graph of some edges to features with a row and to tokens; all the rest is error.

        With ``leaves``, completeness is a share of the influence of tokens and errors too.
        """
        row_of = torch.full((self.index.n_sources,), -1)
        row_Q, column_Q = feature_rows(self.column_R)
        row_of[column_Q] = row_Q
        is_row_K = row_of[columns_K] >= 0
        rows_I = propagated(shares_RK[:, is_row_K], self.weights_R, row_of[columns_K[is_row_K]])
        tokens = float((rows_I @ shares_RK[:, self.token_S[columns_K]]).sum())
        explained_R = torch.where(self.sums_R > 0, shares_RK.sum(1), 1.0)
        total, errors = float(rows_I.sum()), float(((1 - explained_R).clamp_min(0) * rows_I).sum())
        both = tokens + errors
        total += both if leaves else 0.0
        return Scores(tokens / both if both > 0 else 0.0, 1 - errors / total if total > 0 else 0.0)


@dataclass(frozen=True)
class Scores:
    """Scores of a graph, both in [0, 1].

    ``replacement``: share of the target's influence that reaches tokens rather than errors. ``completeness``: share of
    every node's inputs, weighted by its influence, that is not error.
    """

    replacement: float
    completeness: float


@dataclass(frozen=True)
class Pruned:
    """What pruning keeps: sources [S] and rows [R] as masks, and the edges.

    ``edges_RK`` says which rows keep which of the columns ``columns_K``; no other column has an edge.
    """

    sources_S: Tensor
    rows_R: Tensor
    columns_K: Tensor
    edges_RK: Tensor
    n_logits: int

    @property
    def n_nodes(self) -> int:
        """Number of kept sources and logits."""
        return int(self.sources_S.sum()) + self.n_logits

    @property
    def n_edges(self) -> int:
        """Number of kept edges."""
        return int(self.edges_RK.sum())

    def edges(self) -> list[tuple[int, int]]:
        """Row and column of every edge, by row."""
        row, at = self.edges_RK.nonzero(as_tuple=True)
        return list(zip(row.tolist(), self.columns_K[at].tolist(), strict=True))


def share_kept(values: Tensor, share: float) -> Tensor:
    """The fewest largest values that reach ``share`` of the sum, [n] bool."""
    order = values.argsort(descending=True, stable=True)
    reached = values[order].double().cumsum(0)
    keep = torch.zeros_like(values, dtype=torch.bool)
    if len(values) and reached[-1] > 0:
        n = int((reached < share * reached[-1]).sum()) + 1
        keep[order[:n]] = True
    return keep & (values > 0)


def prune(graph: Graph, node_threshold: float, edge_threshold: float) -> Pruned:
    """Keep nodes up to a share of the influence, then edges up to a share of theirs, then drop what is unconnected.

    Tokens and logits stay. A kept feature needs a path to the target and at least one input.
    """
    source_I, _ = graph.influence
    expanded = graph.expanded_S
    candidates = (torch.arange(len(source_I)) >= graph.index.errors) & graph.not_bias_S | expanded
    chosen_S = share_kept(torch.where(candidates, source_I, 0.0), node_threshold) | graph.token_S
    columns = chosen_S.nonzero()[:, 0]
    place_S = torch.full((len(chosen_S),), -1)
    place_S[columns] = torch.arange(len(columns))

    row_Q, column_Q = feature_rows(graph.column_R)
    kept_Q = chosen_S[column_Q]
    row_Q, place_Q = row_Q[kept_Q], place_S[column_Q[kept_Q]]  # kept features: their rows, and their places in K
    rows = graph.column_R < 0
    rows[row_Q] = True
    within = graph.shares(columns) * rows[:, None]
    within /= within.sum(1, keepdim=True).clamp_min(torch.finfo(within.dtype).tiny)
    rows_I = propagated(within[:, place_Q], graph.weights_R, row_Q)
    edge_I = within * rows_I[:, None]
    edges = share_kept(edge_I.flatten(), edge_threshold).view_as(edge_I)
    kept_K, tokens_K = torch.ones(len(columns), dtype=torch.bool), graph.token_S[columns]
    while True:
        keep = kept_K & (edges.any(0) | tokens_K)
        keep[place_Q] &= edges.any(1)[row_Q]
        rows_now = rows.clone()
        rows_now[row_Q] = keep[place_Q]
        edges_now = edges & keep & rows_now[:, None]
        if torch.equal(edges_now, edges):
            break
        edges, kept_K = edges_now, keep
    sources = torch.zeros_like(chosen_S)
    sources[columns[keep]] = True
    return Pruned(sources, rows_now, columns, edges, len(graph.logits))
