"""The attribution graph of one prompt, and its pruning."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

import torch
from torch import Tensor

from mechstudy.circuits.influence import Scores, influence, normalised, scores
from mechstudy.circuits.rows import SourceIndex


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


@dataclass
class Graph:
    """Direct effects of one prompt: R rows (logits first, then expanded features), S sources.

    ``column_R`` is the source column of the feature a row explains, -1 for logits; ``feature_layer_S``,
    ``feature_position_S``, ``feature_id_S`` and ``activation_S`` describe the feature columns. ``summed``: the logit
    rows add up to one target.
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

    # ---------------------------------------------------------------- influence

    def influence(self) -> tuple[Tensor, Tensor]:
        """Influence per source [S] and per row [R] of the unpruned graph."""
        return influence(normalised(self.A_RS, self.not_bias_S), self.weights_R, self.column_R)

    def scores(self, pruned: Pruned | None = None) -> Scores:
        """Scores before pruning, or of the pruned graph with everything cut counted as error."""
        A_hat = normalised(self.A_RS, self.not_bias_S)
        real_S = self.expanded_S | self.token_S
        if pruned is None:
            return scores(A_hat, self.weights_R, self.column_R, self.token_S, ~real_S & self.not_bias_S)
        # A cut edge's share moves to one more column, which counts as error.
        kept = A_hat * pruned.edges_RS
        cut = (A_hat.sum(1) - kept.sum(1)).clamp_min(0)
        widened = torch.cat([kept, cut[:, None]], 1)
        pad = torch.tensor([False])
        error_S = torch.cat([~real_S & self.not_bias_S, ~pad])
        return scores(widened, self.weights_R, self.column_R, torch.cat([self.token_S, pad]), error_S)


@dataclass(frozen=True)
class Pruned:
    """Masks of what pruning keeps: sources [S], rows [R] and edges [R, S], all bool."""

    sources_S: Tensor
    rows_R: Tensor
    edges_RS: Tensor
    n_logits: int

    @property
    def n_nodes(self) -> int:
        """Number of kept sources and logits."""
        return int(self.sources_S.sum()) + self.n_logits

    @property
    def n_edges(self) -> int:
        """Number of kept edges."""
        return int(self.edges_RS.sum())


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
    A_hat = normalised(graph.A_RS, graph.not_bias_S)
    source_I, row_I = influence(A_hat, graph.weights_R, graph.column_R)
    expanded = graph.expanded_S
    candidates = (torch.arange(len(source_I)) >= graph.index.errors) & graph.not_bias_S | expanded
    sources = share_kept(torch.where(candidates, source_I, 0.0), node_threshold) | graph.token_S
    is_feature = graph.column_R >= 0
    columns = graph.column_R.clamp_min(0)
    rows = ~is_feature | sources[columns]

    within = A_hat * sources * rows[:, None]
    within = within / within.sum(1, keepdim=True).clamp_min(torch.finfo(within.dtype).tiny)
    _, row_I = influence(within, graph.weights_R, graph.column_R)
    edge_I = within * (row_I + graph.weights_R)[:, None]
    edges = share_kept(edge_I.flatten(), edge_threshold).view_as(edge_I)
    while True:
        used = edges.any(0)
        fed = edges.any(1)
        keep_S = sources & (used | graph.token_S)
        keep_S[columns[is_feature]] &= fed[is_feature]
        rows_now = ~is_feature | keep_S[columns]
        edges_now = edges & keep_S & rows_now[:, None]
        if torch.equal(edges_now, edges):
            break
        edges, sources = edges_now, keep_S
    return Pruned(keep_S, rows_now, edges, len(graph.logits))
