"""The parts of a block, found through the family table, and the linear maps they are when frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechstudy.models.families import Family


@dataclass(frozen=True)
class LinearNorm:
    """A norm with its scale frozen: ``y = (x - mean(x) if centred else x) * scale * weight + bias``.

    ``scale`` is one number per token, taken from a forward pass. With ``normed_TD``, the input of that pass times
    ``scale``, centred if the norm is, `linear` and `backward` are the norm's own derivative there, in which the scale
    responds: ``dy = (dx - normed * mean(normed * dx)) * scale * weight``.
    """

    weight_D: Float[Tensor, "*heads d"]
    bias_D: Float[Tensor, "*heads d"] | None
    centred: bool
    scale_T: Float[Tensor, "*t"]
    normed_TD: Float[Tensor, "*t d"] | None = None

    def forward(self, x_TD: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
        """The normed input, affine in ``x``."""
        x = x_TD - x_TD.mean(-1, keepdim=True) if self.centred else x_TD
        y = x * self.scale_T[..., None] * self.weight_D
        return y if self.bias_D is None else y + self.bias_D

    def linear(self, x_TD: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
        """The linear part: without the bias."""
        if self.normed_TD is not None:
            x_TD = x_TD - self.normed_TD * (self.normed_TD * x_TD).mean(-1, keepdim=True)
        return replace(self, bias_D=None).forward(x_TD)

    def at(self, where: Int[Tensor, " m"] | slice) -> LinearNorm:
        """The norm at some of its positions, the first dimension of ``scale_T``."""
        normed = None if self.normed_TD is None else self.normed_TD[where]
        return replace(self, scale_T=self.scale_T[where], normed_TD=normed)

    def until(self, n_positions: int) -> LinearNorm:
        """The norm at the first positions."""
        return self.at(slice(n_positions))

    def backward(self, g_TD: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
        """Gradient with respect to ``x``, from the gradient with respect to ``y``."""
        g = g_TD * (self.scale_T[..., None] * self.weight_D)
        if self.normed_TD is not None:
            g = g - self.normed_TD * (self.normed_TD * g).mean(-1, keepdim=True)
        return g - g.mean(-1, keepdim=True) if self.centred else g


@dataclass(frozen=True)
class AttentionWeights:
    """The value and output maps of one attention layer, per head.

    ``G`` counts kv heads, ``Q`` query heads, ``H`` is the width of a head. Query head ``q`` reads the values of kv head
    ``q // (Q / G)``.
    """

    value_GHD: Float[Tensor, "g h d"]
    value_bias_GH: Float[Tensor, "g h"] | None
    output_DQH: Float[Tensor, "d q h"]
    output_bias_D: Float[Tensor, " d"] | None

    def values(self, x_SD: Float[Tensor, "*b s d"]) -> Float[Tensor, "*b s q h"]:
        """What each query head reads of normed inputs."""
        v_SGH = torch.einsum("...sd,ghd->...sgh", x_SD, self.value_GHD)
        if self.value_bias_GH is not None:
            v_SGH = v_SGH + self.value_bias_GH
        return v_SGH.repeat_interleave(self.output_DQH.shape[1] // len(self.value_GHD), -2)

    def forward(
        self, pattern_BQTS: Float[Tensor, "#b q t s"], x_BSD: Float[Tensor, "#b s d"]
    ) -> Float[Tensor, "b t d"]:
        """Attention output of normed inputs under a fixed pattern, affine in ``x``."""
        v_BSQH = self.values(x_BSD)
        out = torch.einsum("bqts,bsqh,dqh->btd", pattern_BQTS, v_BSQH, self.output_DQH)
        return out if self.output_bias_D is None else out + self.output_bias_D

    def backward(self, pattern_QTS: Float[Tensor, "q t s"], g_RTD: Float[Tensor, "r t d"]) -> Float[Tensor, "r s d"]:
        """Gradients with respect to the normed input, from R gradients with respect to the output.

        One pattern serves every row.
        """
        groups = self.value_GHD.shape[0]
        rows, length, _ = g_RTD.shape
        heads, width = self.output_DQH.shape[1:]
        z_RTQH = (g_RTD @ self.output_DQH.reshape(-1, heads * width)).view(rows, length, heads, width)
        # The heads of a group share values: one product sums over heads and queries at once.
        queries = heads // groups * length
        pattern_GSX = pattern_QTS.reshape(groups, queries, length).transpose(1, 2)
        mixed_GSRH = torch.bmm(pattern_GSX, z_RTQH.permute(2, 1, 0, 3).reshape(groups, queries, rows * width))
        per_group_RSGH = mixed_GSRH.view(groups, length, rows, width).permute(2, 1, 0, 3)
        return per_group_RSGH.reshape(rows, length, groups * width) @ self.value_GHD.reshape(groups * width, -1)


class Block:
    """One transformer block, its parts found through the table.

    ``norm_attn`` and ``norm_mlp`` are None where the family reads the residual stream as it is, ``norm_attn_post`` and
    ``norm_mlp_post`` where it writes as it is, ``mlp_down`` where the MLP is a mixture of experts.
    ``residual_multiplier`` is what attention and MLP are multiplied by before they are added (Granite).
    """

    def __init__(self, arch: Family, module: nn.Module, config: Any) -> None:
        self.arch, self.module, self.config = arch, module, config
        self.attn: Any = getattr(module, arch.attn)  # Any: their attributes differ from family to family
        self.attn_proj: Any = getattr(self.attn, arch.attn_out)
        self.mlp: nn.Module = getattr(module, arch.mlp)
        self.norm_attn: nn.Module | None = _optional(module, arch.norm_attn)
        self.norm_mlp: nn.Module | None = _optional(module, arch.norm_mlp)
        self.norm_attn_post: nn.Module | None = _optional(module, arch.norm_attn_post)
        self.norm_mlp_post: nn.Module | None = _optional(module, arch.norm_mlp_post)
        self.mlp_down: Any = getattr(self.mlp, arch.mlp_down, None)
        self.residual_multiplier = float(getattr(module, "residual_multiplier", 1.0))
        self.parallel = arch.parallel == "always" or (
            arch.parallel == "config" and bool(getattr(module, "use_parallel_residual", False))
        )

    def attention_weights(self) -> AttentionWeights:
        """Value and output maps, split per head from the family's fused layout."""
        value_GHD, value_bias_GH = self.head_projection("value")
        out = self.attn_proj
        weight = out.weight.T if self.arch.value == "gpt2" else out.weight  # Conv1D: weight is [in, out]
        multiplier = self.residual_multiplier
        return AttentionWeights(
            value_GHD,
            value_bias_GH,
            _times(weight.detach().reshape(weight.shape[0], -1, value_GHD.shape[1]), multiplier),
            None if out.bias is None else _times(out.bias.detach(), multiplier),
        )

    def head_projection(
        self, part: Literal["query", "key", "value"]
    ) -> tuple[Float[Tensor, "heads h d"], Float[Tensor, "heads h"] | None]:
        """Weights and biases that make one part of every head from the normed residual, before any norm or rotary map.

        Keys and values have one row per kv head.
        """
        cfg, which = self.config, ("query", "key", "value").index(part)
        heads = cfg.num_attention_heads
        groups = getattr(cfg, "num_key_value_heads", None) or heads
        width = getattr(self.attn, "head_dim", None) or getattr(cfg, "head_dim", None) or cfg.hidden_size // heads
        d = cfg.hidden_size
        if self.arch.value == "v_proj":
            own = getattr(self.attn, ("q_proj", "k_proj", "v_proj")[which])
            weight, bias = own.weight, own.bias
        elif self.arch.value == "qkv_proj":  # rows of queries | keys | values
            qkv = self.attn.qkv_proj
            ends = [0, heads * width, (heads + groups) * width, (heads + 2 * groups) * width]
            rows = slice(ends[which], ends[which + 1])
            weight, bias = qkv.weight[rows], None if qkv.bias is None else qkv.bias[rows]
        elif self.arch.value == "gpt2":
            c = self.attn.c_attn  # q | k | v side by side
            columns = slice(which * d, (which + 1) * d)
            weight, bias = c.weight[:, columns].T, c.bias[columns]
        else:
            c = self.attn.query_key_value  # rows grouped per head as q | k | v
            weight = c.weight.reshape(heads, 3, width, d)[:, which]
            bias = None if c.bias is None else c.bias.reshape(heads, 3, width)[:, which]
        bias = None if bias is None else bias.detach().reshape(-1, width)
        return weight.detach().reshape(-1, width, d), bias


def linear_norm(arch: Family, norm: Any, x_TD: Float[Tensor, "*t d"], live: bool = False) -> LinearNorm:
    """The norm with its scale frozen at ``x_TD``, in the dtype of ``x_TD``; the identity for None.

    ``live``: derivatives are those of the norm itself, whose scale responds.
    """
    if norm is None:
        return LinearNorm(x_TD.new_ones(x_TD.shape[-1]), None, False, x_TD.new_ones(x_TD.shape[:-1]))
    own = getattr(norm, "weight", None)
    weight = x_TD.new_ones(x_TD.shape[-1]) if own is None else own.detach().to(x_TD.dtype)
    if arch.norm in ("rms_plus_one", "layer_plus_one"):
        weight = weight + 1
    centred = arch.norm.startswith("layer")
    squares = x_TD.var(-1, unbiased=False) if centred else x_TD.pow(2).mean(-1)
    own_bias = getattr(norm, "bias", None)
    bias = None if own_bias is None else own_bias.detach().to(x_TD.dtype)
    scale_T = torch.rsqrt(squares + _epsilon(norm))
    normed_TD = None
    if live:
        normed_TD = (x_TD - x_TD.mean(-1, keepdim=True) if centred else x_TD) * scale_T[..., None]
    return LinearNorm(weight, bias, centred, scale_T, normed_TD)


def blocks_of(arch: Family, base: nn.Module, config: Any) -> Sequence[Block]:
    """The model's blocks in order of depth."""
    return [Block(arch, module, config) for module in getattr(base, arch.blocks)]


def _epsilon(norm: Any) -> float:
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            return float(getattr(norm, name))
    return 1e-5  # OLMo's layer norm has it as a literal


def _times(x: Tensor, multiplier: float) -> Tensor:
    return x if multiplier == 1 else x * multiplier


def _optional(module: nn.Module, name: str | None) -> nn.Module | None:
    return getattr(module, name) if name else None
