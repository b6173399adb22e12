"""Rows of the direct-effect matrix, by one explicit linear backward pass for many targets at once.

A target is a vector placed at a reading point (the site that a layer's nodes read, at a position, or the final normed
residual). Its gradient flows down through frozen norms, frozen attention and MLPs that are linear maps; at every layer,
its inner product with what a source wrote there is that source's contribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.circuits.linear_prompt import LinearisedPrompt, written_at


@dataclass(frozen=True)
class Target:
    """A scalar that is explained: ``value = <direction, reading point> + constant``.

    ``layer`` is the block whose nodes' site is read, or the number of layers for the final normed residual.
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
        counts = [0 if x.nodes is None else len(x.nodes.value_M) for x in prompt.layers]
        ends = torch.tensor(counts).cumsum(0).tolist()
        self.feature_slices = [slice(end - n, end) for end, n in zip(ends, counts, strict=True)]
        self.n_features = sum(counts)
        self.errors = self.n_features
        self.tokens = self.errors + self.n_layers * self.n_positions
        self.biases = self.tokens + self.n_positions
        self.n_sources = self.biases + self.n_layers + 2

    def error_slice(self, layer: int, n_positions: int | None = None) -> slice:
        """Columns of one layer's errors, by position; of the first positions only, if a number is given."""
        start = self.errors + layer * self.n_positions
        return slice(start, start + (self.n_positions if n_positions is None else n_positions))

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


Watch = Callable[[int, list[int], Tensor], None]
"""Is shown, of every layer from above: which targets reach it, and their gradients at its ``attn_out``."""


def direct_effects(
    prompt: LinearisedPrompt, index: SourceIndex, targets: Sequence[Target], watch: Watch | None = None
) -> Float[Tensor, "r s"]:
    """Direct effect of every source on every target; each row adds up to its target's value.

    Rows are computed together and independently: neither batch size nor order changes them beyond rounding. Positions
    after the last target's are left out, since they cannot matter.
    """
    order = sorted(range(len(targets)), key=lambda i: -targets[i].layer)
    ranked = [targets[i] for i in order]
    cut = prompt.until(1 + max(target.position for target in targets))
    shown = None if watch is None else lambda layer, g_RTD: watch(layer, order[: len(g_RTD)], g_RTD)
    rows = _Backward(cut, index, ranked, shown).rows()
    if order == list(range(len(targets))):
        return rows
    out = torch.empty_like(rows)
    out[torch.tensor(order, device=rows.device)] = rows
    return out


def injected_effects(
    prompt: LinearisedPrompt, index: SourceIndex, entering: Mapping[int, Float[Tensor, "r t d"]], n_rows: int
) -> Float[Tensor, "r s"]:
    """Inner products of every source with gradients that enter at ``resid_pre`` of some layers and flow down.

    The columns of constants hold what biases contribute to them.
    """
    g_RTD = prompt.tokens_TD.new_zeros(n_rows, *prompt.tokens_TD.shape)
    return _Backward(prompt, index, (), n_rows=n_rows).flowed(g_RTD, entering)


class _Backward:
    """One pass from the output to the tokens, of targets that are sorted by falling layer."""

    def __init__(
        self,
        prompt: LinearisedPrompt,
        index: SourceIndex,
        ranked: Sequence[Target],
        watch: Callable[[int, Tensor], None] | None = None,
        n_rows: int | None = None,
    ) -> None:
        self.prompt, self.index, self.ranked, self.watch = prompt, index, ranked, watch
        self.like_TD = prompt.tokens_TD
        self.zero_TD = torch.zeros_like(self.like_TD)
        self.rows_RS = self.like_TD.new_zeros(len(ranked) if n_rows is None else n_rows, index.n_sources)
        constants = torch.tensor([t.constant for t in ranked], dtype=torch.float64)
        self.rows_RS[: len(ranked), index.own_bias] = constants.to(self.rows_RS)

    def rows(self) -> Tensor:
        """The rows [R, S] of the targets, in their order."""
        prompt, index = self.prompt, self.index
        g_RTD = self.like_TD.new_zeros(0, *self.like_TD.shape)
        n = sum(target.layer >= index.n_layers for target in self.ranked)
        if n:
            g_RTD = prompt.final_norm.backward(placed(self.ranked[:n], self.like_TD))
            self._own_bias(0, n, prompt.final_norm.forward(self.zero_TD))
        for layer in reversed(range(index.n_layers)):
            n = sum(target.layer >= layer for target in self.ranked)
            if n:
                g_RTD = self._below(layer, g_RTD, n)
        return self._at_tokens(g_RTD)

    def flowed(self, g_RTD: Tensor, entering: Mapping[int, Tensor]) -> Tensor:
        """The rows [R, S] of gradients that enter at ``resid_pre`` of layers."""
        for layer in reversed(range(self.index.n_layers)):
            g_RTD = self._below(layer, g_RTD, len(g_RTD), entering.get(layer))
        return self._at_tokens(g_RTD)

    def _at_tokens(self, g_RTD: Tensor) -> Tensor:
        """The rows, with what tokens and position embeddings wrote."""
        prompt, rows, index = self.prompt, self.rows_RS, self.index
        length = prompt.n_positions
        rows[:, index.tokens : index.tokens + length] = torch.einsum("rtd,td->rt", g_RTD, prompt.tokens_TD)
        if prompt.position_TD is not None:
            rows[:, index.embedding_bias] = torch.einsum("rtd,td->r", g_RTD, prompt.position_TD)
        return rows

    def _below(self, layer: int, g_RTD: Tensor, n: int, entering_RTD: Tensor | None = None) -> Tensor:
        """Gradients at ``resid_pre``, from those of rows above at ``resid_post`` and the layer's own targets.

        Own targets are the rows from ``len(g_RTD)`` to ``n``. ``entering_RTD`` is added where attention reads.
        """
        x, above = self.prompt.layers[layer], len(g_RTD)
        new_NTD, own = placed(self.ranked[above:n], self.like_TD), x.reads if n > above else None
        if x.is_replaced and x.writes == "resid_post":
            g_RTD = self._landed(layer, g_RTD)
            if own == "resid_post":
                g_RTD = torch.cat([g_RTD, new_NTD])
        g_mid = self._through_mlp(layer, g_RTD)
        if own == "mlp_out":
            self._constant(layer, slice(above, n), new_NTD, x.mlp_bias_TD)
            g_mid = torch.cat([g_mid, x.through_mlp(new_NTD, whole=True)])
        elif own == "mlp_in":
            self._own_bias(above, n, x.norm_mlp.forward(self.zero_TD))
            g_mid = torch.cat([g_mid, x.norm_mlp.backward(new_NTD)])
        if own == "resid_mid":
            g_mid = torch.cat([g_mid, new_NTD])
        # In a parallel block attention reads and writes beside the MLP: only what came from above passes it.
        at_attention = g_mid
        if x.parallel:
            at_attention = torch.cat([g_RTD, torch.zeros_like(g_mid[len(g_RTD) :])])
        if x.is_replaced and x.writes == "attn_out":
            at_attention = self._landed(layer, at_attention)
        if own == "attn_out":
            at_attention = torch.cat([at_attention, new_NTD])
            g_mid = torch.cat([g_mid, torch.zeros_like(new_NTD)])
        self._constant(layer, slice(len(at_attention)), at_attention, x.attention_bias_TD)
        if self.watch is not None:
            self.watch(layer, at_attention)
        g_pre = g_mid + x.through_attention(at_attention)
        if entering_RTD is not None:
            g_pre = g_pre + entering_RTD
        if x.is_replaced and x.writes == "resid_pre":
            g_pre = self._landed(layer, g_pre)
        if own == "resid_pre":
            g_pre = torch.cat([g_pre, new_NTD])
        return g_pre

    def _through_mlp(self, layer: int, g_RTD: Tensor) -> Tensor:
        """Gradients at the stream that the MLP reads, its nodes and errors collected."""
        x = self.prompt.layers[layer]
        if x.is_replaced and x.writes == "mlp_out":
            self._collect(layer, g_RTD)
            return g_RTD if x.skip is None else g_RTD + x.through_mlp(g_RTD, whole=False)
        self._constant(layer, slice(len(g_RTD)), g_RTD, x.mlp_bias_TD)
        return g_RTD + x.through_mlp(g_RTD, whole=True)

    def _landed(self, layer: int, g_RTD: Tensor) -> Tensor:
        """Collects what arrives at a layer's nodes, where it ends."""
        self._collect(layer, g_RTD)
        return torch.zeros_like(g_RTD)

    def _collect(self, layer: int, g_RTD: Tensor) -> None:
        """Inner products with everything that is written where a layer's nodes write."""
        x, rows = self.prompt.layers[layer], self.rows_RS[: len(g_RTD)]
        if not len(g_RTD):
            return
        if x.error_TD is not None and x.bias_TD is not None:
            errors = self.index.error_slice(layer, self.prompt.n_positions)
            both_RTC = torch.einsum("rtd,tcd->rtc", g_RTD, torch.stack([x.error_TD, x.bias_TD], 1))
            rows[:, errors] += both_RTC[..., 0]
            rows[:, self.index.biases + layer] += both_RTC[..., 1].sum(1)
        elif x.error_TD is not None:
            errors = self.index.error_slice(layer, self.prompt.n_positions)
            rows[:, errors] += torch.einsum("rtd,td->rt", g_RTD, x.error_TD)
        else:
            self._constant(layer, slice(len(g_RTD)), g_RTD, x.bias_TD)
        for source, nodes, ahead in written_at(self.prompt.layers, layer):
            columns = rows[:, self.index.feature_slices[source]]
            start = 0
            counts = torch.bincount(nodes.position_M, minlength=g_RTD.shape[1]).tolist()
            for position, count in enumerate(counts):
                if count:
                    vectors = nodes.written(ahead, slice(start, start + count))
                    columns[:, start : start + count] += g_RTD[:, position] @ vectors.T
                start += count

    def _constant(self, layer: int, which: slice, g_RTD: Tensor, bias_TD: Tensor | None) -> None:
        if bias_TD is not None and len(g_RTD):
            self.rows_RS[which, self.index.biases + layer] += torch.einsum("rtd,td->r", g_RTD, bias_TD)

    def _own_bias(self, first: int, last: int, norm_at_zero_TD: Tensor) -> None:
        """Contribution of the reading norm's bias."""
        biases = [t.direction_D @ norm_at_zero_TD[t.position] for t in self.ranked[first:last]]
        self.rows_RS[first:last, self.index.own_bias] += torch.stack(biases)


def placed(targets: Sequence[Target], like_TD: Float[Tensor, "t d"]) -> Float[Tensor, "r t d"]:
    """Every target's direction at its position, zero elsewhere."""
    g = like_TD.new_zeros(len(targets), *like_TD.shape)
    for row, target in enumerate(targets):
        g[row, target.position] = target.direction_D
    return g


def feature_targets(prompt: LinearisedPrompt, layer: int, which_M: Sequence[int]) -> list[Target]:
    """What some nodes of one layer read, as targets: pre-activations of features, or what neurons hold."""
    x = prompt.layers[layer]
    assert x.nodes is not None and x.read_TD is not None
    which = torch.tensor(list(which_M), device=x.nodes.position_M.device)
    positions = x.nodes.position_M[which]
    directions, constants = x.nodes.readers(which)
    values = (directions * x.read_TD[positions]).sum(-1) + constants
    return [
        Target(layer, int(p), d, float(c), float(v))
        for p, d, c, v in zip(positions, directions, constants, values, strict=True)
    ]
