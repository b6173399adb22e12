"""Edges split over the attention heads that they run through: head loadings.

What a source writes stays in its position's residual stream until the first head reads it. An edge is therefore,
exactly, a direct part, which no head reads (the residual stream, skip paths and linear MLPs), and for every head, query
position and layer the part whose first head that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.circuits.linear_prompt import LinearisedPrompt, LinearLayer
from mechstudy.circuits.rows import SourceIndex, Target, direct_effects

_EDGES_AT_ONCE = 4096


@dataclass(frozen=True)
class HeadLoadings:
    """Of E edges: their ``direct_E`` part, and ``loading_ELHT`` by layer, head and query position.

    ``direct_E + loading_ELHT.sum((1, 2, 3))`` are the edges.
    """

    direct_E: Float[Tensor, " e"]
    loading_ELHT: Float[Tensor, "e l h t"]


@torch.no_grad()
def head_loadings(
    prompt: LinearisedPrompt,
    index: SourceIndex,
    targets: Sequence[Target],
    row_E: Int[Tensor, " e"],
    column_E: Int[Tensor, " e"],
) -> HeadLoadings:
    """Splits edges over heads.

    Memory is E x layers x heads x positions numbers.

    Args:
        prompt: as it was when the edges were computed.
        index: of its sources.
        targets: the rows' targets.
        row_E: number of each edge's target.
        column_E: its source: a feature, an error or a token.
    """
    sources = _Sources(prompt, index, column_E)
    streams = [sources.at(layer) for layer in range(len(prompt.layers))]
    n_heads = prompt.layers[0].pattern_QTS.shape[0]
    loading = prompt.tokens_TD.new_zeros(len(row_E), len(prompt.layers), n_heads, prompt.n_positions)

    def watch(layer: int, reached: list[int], g_RTD: Tensor) -> None:
        place_R = torch.full((len(targets),), -1)
        place_R[torch.tensor(reached, dtype=torch.long)] = torch.arange(len(reached))
        here = (place_R[row_E] >= 0).nonzero()[:, 0]
        x = prompt.layers[layer].until(g_RTD.shape[1])
        for start in range(0, len(here), _EDGES_AT_ONCE):
            part = here[start : start + _EDGES_AT_ONCE]
            g_ETD = g_RTD[place_R[row_E[part]]]
            passed = _through_heads(x, g_ETD, streams[layer][part], sources.position_E[part])
            loading[part, layer, :, : g_RTD.shape[1]] = passed

    weights_RS = direct_effects(prompt, index, targets, watch)
    return HeadLoadings(weights_RS[row_E, column_E] - loading.sum((1, 2, 3)), loading)


def _through_heads(x: LinearLayer, g_ETD: Tensor, vectors_ED: Tensor, position_E: Tensor) -> Tensor:
    """What each head passes from each edge's source to its target, by query position: [E, heads, T]."""
    if x.norm_attn_post is not None:
        g_ETD = x.norm_attn_post.backward(g_ETD)
    weights = x.attention
    groups, heads = weights.value_GHD.shape[0], weights.output_DQH.shape[1]
    at_E = position_E.clamp_max(g_ETD.shape[1] - 1)
    values_EGH = torch.einsum("ed,ghd->egh", x.norm_attn.at(at_E).linear(vectors_ED), weights.value_GHD)
    written_EQD = torch.einsum("eqh,dqh->eqd", values_EGH.repeat_interleave(heads // groups, 1), weights.output_DQH)
    per_unit_EQT = torch.einsum("etd,eqd->eqt", g_ETD, written_EQD)
    # A source after the target's position has no edge to it, and lies outside of the patterns.
    inside_E = (at_E == position_E).to(per_unit_EQT)
    return per_unit_EQT * x.pattern_QTS[:, :, at_E].permute(2, 0, 1) * inside_E[:, None, None]


class _Sources:
    """What each edge's source has written into its position's stream, followed up to every layer, past no head."""

    def __init__(self, prompt: LinearisedPrompt, index: SourceIndex, column_E: Tensor) -> None:
        self.prompt, self.index = prompt, index
        self.columns_K, self.of_E = torch.unique(column_E, return_inverse=True)
        self.position_K, self.layer_K = (torch.zeros_like(self.columns_K) for _ in range(2))
        self.stream_KD = prompt.tokens_TD.new_zeros(len(self.columns_K), prompt.tokens_TD.shape[1])
        self._place()
        self.position_E = self.position_K[self.of_E]

    def at(self, layer: int) -> Tensor:
        """What attention of a layer reads of every source, [E, D]; layers are asked for in order, each one."""
        if layer:
            self._pass(layer - 1)
        x = self.prompt.layers[layer]
        if x.is_replaced and x.writes == "resid_pre":
            self.stream_KD = self._written(layer)
        return self.stream_KD[self.of_E]

    def _place(self) -> None:
        """Positions of all sources, and what tokens have written."""
        x, T = self.index, self.prompt.n_positions
        columns = self.columns_K
        for layer, part in enumerate(x.feature_slices):
            here = (columns >= part.start) & (columns < part.stop)
            nodes = self.prompt.layers[layer].nodes
            if nodes is not None and here.any():
                self.position_K[here] = nodes.position_M[columns[here] - part.start]
        errors = (columns >= x.errors) & (columns < x.tokens)
        self.position_K[errors] = (columns[errors] - x.errors) % T
        tokens = (columns >= x.tokens) & (columns < x.biases)
        self.position_K[tokens] = columns[tokens] - x.tokens
        self.stream_KD[tokens] = self.prompt.tokens_TD[self.position_K[tokens]]

    def _pass(self, layer: int) -> None:
        """From ``resid_pre`` of a layer to that of the next, along all paths but heads, with what is written there."""
        x = self.prompt.layers[layer]
        replaced, mid = x.writes if x.is_replaced else None, self.stream_KD
        if replaced == "attn_out":
            mid = mid + self._written(layer)
        # In a parallel block the MLP reads what attention reads.
        stream = mid + self._through_mlp(x, self.stream_KD if x.parallel else mid)
        if replaced == "resid_post":
            stream = torch.zeros_like(stream)
        if replaced in ("mlp_out", "resid_post"):
            stream = stream + self._written(layer)
        self.stream_KD = stream

    def _through_mlp(self, x: LinearLayer, read_KD: Tensor) -> Tensor:
        nodes_here = x.is_replaced and x.writes == "mlp_out"
        path = x.skip if nodes_here else x.mlp
        if path is None:
            return torch.zeros_like(read_KD)
        return path.at(self.position_K).linear(x.norm_mlp.at(self.position_K).linear(read_KD))

    def _written(self, layer: int) -> Tensor:
        """What sources write at the layer's nodes' site."""
        x, written = self.prompt.layers[layer], torch.zeros_like(self.stream_KD)
        own = [] if x.nodes is None else [(layer, x.nodes)]
        for source, nodes in [*x.below.items(), *own]:
            part = self.index.feature_slices[source]
            here = (self.columns_K >= part.start) & (self.columns_K < part.stop)
            if here.any():
                written[here] = nodes.written(layer - source)[self.columns_K[here] - part.start]
        errors = self.index.error_slice(layer)
        here = (self.columns_K >= errors.start) & (self.columns_K < errors.stop)
        if here.any() and x.error_TD is not None:
            written[here] = x.error_TD[self.position_K[here]]
        return written
