"""Rows of the direct-effect matrix, by one explicit linear backward pass for many targets at once.

A target is a vector placed at a reading point (``mlp_in`` of a layer at a position, or the final normed residual). Its
gradient flows down through frozen norms and frozen attention only; at every layer, its inner product with what a
source wrote there is that source's contribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.circuits.linearised import LinearisedPrompt, written_at
from mechstudy.dictionaries.dictionary import Dictionary


@dataclass(frozen=True)
class Target:
    """A scalar that is explained: ``value = <direction, reading point> + constant``.

    ``layer`` is the block whose ``mlp_in`` (or ``resid_mid``) is read, or the number of layers for the final normed
    residual.
    """

    layer: int
    position: int
    direction_D: Tensor
    constant: float
    value: float


class SourceIndex:
    """Columns of the matrix: features layer by layer, then errors [L x T], tokens [T], biases [L + 2].

    The biases are: one per layer (everything constant written there), the embedding's (position
    embeddings), and the target's own (its norm's bias and its constant).
    """

    def __init__(self, prompt: LinearisedPrompt) -> None:
        self.n_layers, self.n_positions = len(prompt.layers), prompt.n_positions
        counts = [0 if x.features is None else len(x.features.value_M) for x in prompt.layers]
        ends = torch.tensor(counts).cumsum(0).tolist()
        self.feature_slices = [slice(end - n, end) for end, n in zip(ends, counts, strict=True)]
        self.n_features = sum(counts)
        self.errors = self.n_features
        self.tokens = self.errors + self.n_layers * self.n_positions
        self.biases = self.tokens + self.n_positions
        self.n_sources = self.biases + self.n_layers + 2

    def error_slice(self, layer: int) -> slice:
        """Columns of one layer's errors, by position."""
        start = self.errors + layer * self.n_positions
        return slice(start, start + self.n_positions)

    @property
    def token_slice(self) -> slice:
        """Columns of the tokens, by position."""
        return slice(self.tokens, self.biases)

    @property
    def embedding_bias(self) -> int:
        """Column of what position embeddings wrote."""
        return self.biases + self.n_layers

    @property
    def own_bias(self) -> int:
        """Column of each target's own constants."""
        return self.biases + self.n_layers + 1


def direct_effects(prompt: LinearisedPrompt, index: SourceIndex, targets: Sequence[Target]) -> Float[Tensor, "r s"]:
    """Direct effect of every source on every target; each row adds up to its target's value.

    Rows are computed together and independently: neither batch size nor order changes them beyond rounding.
    """
    order = sorted(range(len(targets)), key=lambda i: -targets[i].layer)
    ranked = [targets[i] for i in order]
    like = prompt.tokens_TD
    rows = like.new_zeros(len(ranked), index.n_sources)
    g_RTD = like.new_zeros(len(ranked), prompt.n_positions, like.shape[1])
    zero = torch.zeros_like(like)
    n = _count(ranked, index.n_layers)
    if n:
        g_RTD[:n] = prompt.final_norm.backward(_placed(ranked[:n], like))
        rows[:n, index.own_bias] = _own_bias(ranked[:n], prompt.final_norm.forward(zero))
    for layer in reversed(range(index.n_layers)):
        x = prompt.layers[layer]
        if n:
            _collect_mlp(rows[:n], index, layer, prompt, g_RTD[:n])
        g_mid = g_RTD[:n].clone()
        if n and x.skip_DD is not None:
            g_mid += x.through_skip(g_RTD[:n])
        first, n = n, _count(ranked, layer)
        g_pre = g_RTD[:n]
        if n > first:
            new = _placed(ranked[first:n], like)
            at_zero = zero
            if x.mid_TD is None:
                new, at_zero = x.norm_mlp.backward(new), x.norm_mlp.forward(zero)
            rows[first:n, index.own_bias] = _own_bias(ranked[first:n], at_zero)
            g_mid = torch.cat([g_mid, new])
        if not n:
            continue
        # In a parallel block attention reads and writes beside the MLP: only what came from above passes it.
        at_attention = torch.cat([g_RTD[:first], torch.zeros_like(g_mid[first:])]) if x.parallel else g_mid
        rows[:n, index.biases + layer] += torch.einsum("rtd,td->r", at_attention, x.attention_bias_TD)
        g_pre.copy_(g_mid + x.through_attention(at_attention))
    rows[:, index.token_slice] = torch.einsum("rtd,td->rt", g_RTD, prompt.tokens_TD)
    if prompt.position_TD is not None:
        rows[:, index.embedding_bias] = torch.einsum("rtd,td->r", g_RTD, prompt.position_TD)
    out = torch.empty_like(rows)
    out[torch.tensor(order, device=rows.device)] = rows
    return out


def _collect_mlp(rows_RS: Tensor, index: SourceIndex, layer: int, prompt: LinearisedPrompt, g_RTD: Tensor) -> None:
    """Inner products with everything written at the layer's MLP site."""
    x = prompt.layers[layer]
    rows_RS[:, index.error_slice(layer)] = torch.einsum("rtd,td->rt", g_RTD, x.error_TD)
    if x.bias_TD is not None:
        rows_RS[:, index.biases + layer] += torch.einsum("rtd,td->r", g_RTD, x.bias_TD)
    for source, features, vector_MD in written_at(prompt.layers, layer):
        columns = rows_RS[:, index.feature_slices[source]]
        per_position = torch.bincount(features.position_M, minlength=g_RTD.shape[1]).tolist()
        start = 0
        for position, count in enumerate(per_position):
            if count:
                vectors = vector_MD[start : start + count]
                columns[:, start : start + count] += g_RTD[:, position] @ vectors.T
            start += count


def _count(ranked: Sequence[Target], layer: int) -> int:
    """Number of targets, sorted by falling layer, that read at ``layer`` or above."""
    return sum(t.layer >= layer for t in ranked)


def _placed(targets: Sequence[Target], like_TD: Tensor) -> Tensor:
    g = like_TD.new_zeros(len(targets), *like_TD.shape)
    for row, target in enumerate(targets):
        g[row, target.position] = target.direction_D
    return g


def _own_bias(targets: Sequence[Target], norm_at_zero_TD: Tensor) -> Tensor:
    """Contribution of the reading norm's bias and the target's constant."""
    return torch.stack([t.direction_D @ norm_at_zero_TD[t.position] + t.constant for t in targets])


def feature_targets(
    prompt: LinearisedPrompt, dictionaries: Mapping[int, Dictionary], layer: int, which_M: Sequence[int]
) -> list[Target]:
    """The pre-activations of active features of one layer, as targets."""
    x = prompt.layers[layer]
    assert x.features is not None
    dictionary = dictionaries[layer]
    positions = x.features.position_M[list(which_M)]
    features = x.features.feature_M[list(which_M)]
    directions = dictionary.encoder_rows(features).to(x.read_TD)
    constants = dictionary.b_enc[features].to(x.read_TD)
    values = (directions * x.read_TD[positions]).sum(-1) + constants
    return [
        Target(layer, int(p), d, float(c), float(v))
        for p, d, c, v in zip(positions, directions, constants, values, strict=True)
    ]
