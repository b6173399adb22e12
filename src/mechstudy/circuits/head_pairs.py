"""Why a head attends where it attends: the scores of a graph's heads, split over pairs of what wrote query and key.

A score is exactly the sum of one term per pair of summands of the residual stream at the query and at the key
(`score_terms`). The summands here are what each node, and each head of a lower layer, wrote into that stream itself:
what moved there through a head counts as that head's. Constants, linear MLPs and whatever is not listed are one
summand, the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.circuits.head_flow import HeadFlow
from mechstudy.circuits.linear_prompt import LinearisedPrompt, written_at
from mechstudy.circuits.query_key import score_terms, through_scores
from mechstudy.circuits.rows import SourceIndex
from mechstudy.models.query_key import QueryKey

_HEADS = 10
_SUMMANDS = 12  # of a query or a key, that pairs are made of
_LISTED = 8  # pairs of a score

Summand = int | tuple[int, int] | None
"""A column of the graph; or layer and head; or None: the rest."""


@dataclass(frozen=True)
class HeadPairs:
    """The largest terms of one score.

    ``key`` is where the head reads most of the ``influence`` that passes it at ``query``. ``pairs`` are of a summand at
    the query and one at the key; ``score`` is the sum of all terms, listed or not, and the model's own.
    """

    layer: int
    head: int
    query: int
    key: int
    influence: float
    pattern: float
    score: float
    pairs: tuple[tuple[Summand, Summand, float], ...]


@torch.no_grad()
def head_pairs(
    prompt: LinearisedPrompt, index: SourceIndex, flow: HeadFlow, scores: Mapping[int, QueryKey], n_heads: int = _HEADS
) -> list[HeadPairs]:
    """The largest terms of the scores of the heads that most influence passes.

    Pairs are made of the summands of largest share in the score, on either side.

    Args:
        prompt: as it was when the graph's edges were computed.
        index: of its sources.
        flow: of the same graph.
        scores: queries and keys of every layer (`models.query_keys`).
        n_heads: heads at query positions.
    """
    places = sorted(flow.keys, key=lambda place: -flow.heads[place])[:n_heads]
    sides: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
    for number, (layer, head, query) in enumerate(places):
        key, _ = flow.keys[layer, head, query]
        one = torch.zeros_like(scores[layer].score_QTS)
        one[head, query, key] = 1
        at_query_1TD, at_key_1TD = through_scores(scores[layer], one[None])
        sides.setdefault((query, 0), []).append((number, at_query_1TD[0, query]))
        sides.setdefault((key, 1), []).append((number, at_key_1TD[0, key]))
    streams = Streams(prompt, index, scores)
    largest: dict[tuple[int, int], tuple[list[Summand], Tensor]] = {}
    for (position, side), wanted in sides.items():
        gradients = {number: (places[number][0], g_D) for number, g_D in wanted}
        largest |= {(number, side): some for number, some in streams.largest(position, gradients, _SUMMANDS).items()}
    made = []
    for number, (layer, head, query) in enumerate(places):
        key, influence = flow.keys[layer, head, query]
        pairs, score = _pairs(scores[layer], head, query, key, largest[number, 0], largest[number, 1])
        pattern = float(scores[layer].pattern_QTS[head, query, key])
        made.append(HeadPairs(layer, head, query, key, influence, pattern, score, pairs))
    return made


def _pairs(
    layer: QueryKey,
    head: int,
    query: int,
    key: int,
    at_query: tuple[list[Summand], Tensor],
    at_key: tuple[list[Summand], Tensor],
) -> tuple[tuple[tuple[Summand, Summand, float], ...], float]:
    """The largest terms, and the sum of all."""
    (names_q, vectors_q), (names_k, vectors_k) = (
        _with_rest(side, layer, p) for side, p in ((at_query, query), (at_key, key))
    )
    terms = score_terms(layer, head, query, key, vectors_q, vectors_k)
    terms = torch.cat([terms[:-2], terms[-2:].sum(0, keepdim=True)])  # the rest has the constants in it
    terms = torch.cat([terms[:, :-2], terms[:, -2:].sum(1, keepdim=True)], 1)
    order = terms.abs().flatten().topk(min(_LISTED, terms.numel())).indices.tolist()
    places = [divmod(i, len(names_k)) for i in order]
    return tuple((names_q[q], names_k[k], float(terms[q, k])) for q, k in places), float(terms.sum())


def _with_rest(side: tuple[list[Summand], Tensor], layer: QueryKey, position: int) -> tuple[list[Summand], Tensor]:
    names, vectors_ND = side
    rest_D = layer.resid_TD[position] - vectors_ND.sum(0)
    return [*names, None], torch.cat([vectors_ND, rest_D[None]])


class Streams:
    """What nodes and heads wrote into the residual stream of a prompt, position by position.

    Where nodes stand for the whole stream (SAEs of ``resid_post`` and ``resid_pre``), nothing below them counts. The
    summands of a position are the graph's columns and, after them, every head of every layer.
    """

    def __init__(self, prompt: LinearisedPrompt, index: SourceIndex, scores: Mapping[int, QueryKey]) -> None:
        self.prompt, self.index, self.scores = prompt, index, scores
        self.n_heads = prompt.layers[0].pattern_QTS.shape[0]

    def largest(
        self, position: int, gradients: Mapping[int, tuple[int, Float[Tensor, " d"]]], most: int
    ) -> dict[int, tuple[list[Summand], Float[Tensor, "m d"]]]:
        """By gradient, the summands of the largest inner products with it, and their vectors.

        Args:
            position: of the stream.
            gradients: layer and gradient, of functions of what the layer's attention reads.
            most: summands of each.
        """
        g_ND = torch.stack([g_D for _, g_D in gradients.values()])
        spans = [self._span(layer) for layer, _ in gradients.values()]
        parts: dict[int, Tensor] = {}  # by first column; a cross-layer transcoder writes the same ones several times
        for time, first, rows_MD in self._written(position, max(until for _, until in spans)):
            counts_N = torch.tensor([since <= time <= until for since, until in spans], device=g_ND.device)
            shares_NM = counts_N[:, None] * (g_ND @ rows_MD.T)
            if len(rows_MD):
                parts[first] = parts[first] + shares_NM if first in parts else shares_NM
        columns_S = torch.cat([torch.arange(first, first + part.shape[1]) for first, part in parts.items()])
        shares_NS = torch.cat(list(parts.values()), 1).cpu()
        found = {}
        for number, share_S, span in zip(gradients, shares_NS, spans, strict=True):
            places = share_S.abs().topk(min(most, len(share_S))).indices
            chosen = sorted(columns_S[places[share_S[places] != 0]].tolist())
            vectors = [self._vector(column, position, span) for column in chosen]
            found[number] = (
                [self._name(column) for column in chosen],
                torch.stack([*vectors, torch.zeros_like(g_ND[0])])[:-1],
            )
        return found

    def _span(self, layer: int) -> tuple[int, int]:
        """The times from which and until which writes are in what a layer's attention reads."""
        until, since = _time(layer, "resid_pre"), _TOKENS
        for number, x in enumerate(self.prompt.layers[: layer + 1]):
            if x.is_replaced and x.writes in ("resid_pre", "resid_post") and _time(number, x.writes) <= until:
                since = _time(number, x.writes)
        return since, until

    def _written(self, position: int, until: int) -> Iterator[tuple[int, int, Tensor]]:
        """When something was written, the first of its columns, and what each wrote."""
        yield _TOKENS, self.index.tokens + position, self.prompt.tokens_TD[position, None]
        for layer, x in enumerate(self.prompt.layers):
            if _time(layer, "resid_pre") > until:
                return
            if not (x.is_replaced and x.writes == "attn_out"):
                yield _time(layer, "attn_out"), self._heads_from(layer), self._by_heads(layer, position)
            time = _time(layer, x.writes)
            for source, nodes, ahead in written_at(self.prompt.layers, layer):
                here = _at(nodes.position_M, position)
                yield time, self.index.feature_slices[source].start + here.start, nodes.written(ahead, here)
            if x.error_TD is not None:
                yield time, self.index.error_slice(layer).start + position, x.error_TD[position, None]

    def _vector(self, column: int, position: int, span: tuple[int, int]) -> Tensor:
        """What one summand wrote in a span."""
        since, until = span
        total_D = torch.zeros_like(self.prompt.tokens_TD[0])
        for time, rows_1D in self._writes_of(column, position):
            if since <= time <= until:
                total_D = total_D + rows_1D[0]
        return total_D

    def _writes_of(self, column: int, position: int) -> Iterator[tuple[int, Tensor]]:
        x = self.index
        if column >= x.n_sources:
            layer, head = divmod(column - x.n_sources, self.n_heads)
            yield _time(layer, "attn_out"), self._by_heads(layer, position)[head, None]
        elif column >= x.tokens:
            yield _TOKENS, self.prompt.tokens_TD[position, None]
        elif column >= x.errors:
            layer = (column - x.errors) // x.n_positions
            error_TD = self.prompt.layers[layer].error_TD
            assert error_TD is not None
            yield _time(layer, self.prompt.layers[layer].writes), error_TD[position, None]
        else:
            source = next(number for number, part in enumerate(x.feature_slices) if column < part.stop)
            one = slice(column - x.feature_slices[source].start, column - x.feature_slices[source].start + 1)
            for layer in range(source, len(self.prompt.layers)):
                for number, nodes, ahead in written_at(self.prompt.layers, layer):
                    if number == source:
                        yield _time(layer, self.prompt.layers[layer].writes), nodes.written(ahead, one)

    def _by_heads(self, layer: int, position: int) -> Float[Tensor, "q d"]:
        """What every head wrote, without constants."""
        x, own = self.prompt.layers[layer], self.scores[layer]
        values_SGH = torch.einsum("sd,ghd->sgh", own.norm.linear(own.resid_TD), x.attention.value_GHD)
        values_SQH = values_SGH.repeat_interleave(self.n_heads // values_SGH.shape[1], 1)
        read_QH = torch.einsum("qs,sqh->qh", x.pattern_QTS[:, position], values_SQH)
        rows_QD = torch.einsum("qh,dqh->qd", read_QH, x.attention.output_DQH)
        if x.norm_attn_post is None:
            return rows_QD
        return x.norm_attn_post.at(torch.tensor([position], device=rows_QD.device)).linear(rows_QD[:, None])[:, 0]

    def _heads_from(self, layer: int) -> int:
        return self.index.n_sources + layer * self.n_heads

    def _name(self, column: int) -> Summand:
        return column if column < self.index.n_sources else divmod(column - self.index.n_sources, self.n_heads)


_TOKENS = -1  # the time of what tokens write
_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def _time(layer: int, site: str) -> int:
    """Counts the sites where something is written, from below."""
    return len(_SITES) * layer + _SITES.index(site)


def _at(position_M: Tensor, position: int) -> slice:
    """The nodes of a position, of nodes that are sorted by position."""
    ends = torch.searchsorted(position_M.contiguous(), torch.tensor([position, position + 1], device=position_M.device))
    first, last = ends.tolist()
    return slice(first, last)
