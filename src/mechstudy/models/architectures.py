"""The architecture table: where each supported family keeps its blocks, norms, attention and MLP.

Families' attribute names occur nowhere else. `validate_model` checks a row of the table by exact identities on the
loaded model, so a wrong entry is detected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError


@dataclass(frozen=True)
class Architecture:
    """Attribute names of one family; block-level names are relative to a block."""

    family: str
    model_types: tuple[str, ...]
    blocks: str = "layers"
    final_norm: str = "norm"
    attn: str = "self_attn"
    mlp: str = "mlp"
    norm_attn: str = "input_layernorm"
    norm_attn_post: str | None = None
    norm_mlp: str = "post_attention_layernorm"
    norm_mlp_post: str | None = None
    mlp_down: str = "down_proj"
    attn_out: str = "o_proj"
    value: Literal["v_proj", "gpt2", "neox"] = "v_proj"
    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"
    position_embedding: str | None = None


_SANDWICH = {
    "norm_attn_post": "post_attention_layernorm",
    "norm_mlp": "pre_feedforward_layernorm",
    "norm_mlp_post": "post_feedforward_layernorm",
    "norm": "rms_plus_one",
}

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("Llama", ("llama",)),
    Architecture("Qwen2", ("qwen2",)),
    Architecture("Qwen3", ("qwen3",)),
    Architecture("Mistral", ("mistral",)),
    Architecture("Gemma 2", ("gemma2",), **_SANDWICH),  # type: ignore[arg-type]  # literals widen in a dict
    Architecture("Gemma 3 (text)", ("gemma3_text",), **_SANDWICH),  # type: ignore[arg-type]
    Architecture(
        "GPT-2",
        ("gpt2",),
        blocks="h",
        final_norm="ln_f",
        attn="attn",
        norm_attn="ln_1",
        norm_mlp="ln_2",
        mlp_down="c_proj",
        attn_out="c_proj",
        value="gpt2",
        norm="layer",
        position_embedding="wpe",
    ),
    Architecture(
        "GPT-NeoX",
        ("gpt_neox",),
        final_norm="final_layer_norm",
        attn="attention",
        mlp_down="dense_4h_to_h",
        attn_out="dense",
        value="neox",
        norm="layer",
    ),
)


def architecture_for(model_type: str) -> Architecture:
    """The table's row for a Hugging Face ``model_type``.

    Raises:
        MechstudyError: the family is not supported; the message lists those that are.
    """
    for arch in ARCHITECTURES:
        if model_type in arch.model_types:
            return arch
    raise MechstudyError(
        f"models of type {model_type!r} are not supported",
        facts={"supported": ", ".join(f"{a.family} ({'/'.join(a.model_types)})" for a in ARCHITECTURES)},
        fix="choose a model of a supported family",
    )


@dataclass(frozen=True)
class LinearNorm:
    """A norm with its scale frozen: ``y = (x - mean(x) if centred else x) * scale * weight + bias``.

    ``scale`` is one number per token, taken from the clean forward pass.
    """

    weight_D: Float[Tensor, " d"]
    bias_D: Float[Tensor, " d"] | None
    centred: bool
    scale_T: Float[Tensor, "*t"]

    def forward(self, x_TD: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
        """The normed input, affine in ``x``."""
        x = x_TD - x_TD.mean(-1, keepdim=True) if self.centred else x_TD
        y = x * self.scale_T[..., None] * self.weight_D
        return y if self.bias_D is None else y + self.bias_D

    def backward(self, g_TD: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
        """Gradient with respect to ``x``, from the gradient with respect to ``y``."""
        g = g_TD * (self.scale_T[..., None] * self.weight_D)
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

    def forward(
        self, pattern_BQTS: Float[Tensor, "#b q t s"], x_BSD: Float[Tensor, "#b s d"]
    ) -> Float[Tensor, "b t d"]:
        """Attention output of normed inputs under a fixed pattern, affine in ``x``."""
        groups = self.value_GHD.shape[0]
        v_BGSH = torch.einsum("bsd,ghd->bgsh", x_BSD, self.value_GHD)
        if self.value_bias_GH is not None:
            v_BGSH = v_BGSH + self.value_bias_GH[:, None]
        v = v_BGSH.repeat_interleave(pattern_BQTS.shape[1] // groups, 1)
        out = torch.einsum("bqts,bqsh,dqh->btd", pattern_BQTS, v, self.output_DQH)
        return out if self.output_bias_D is None else out + self.output_bias_D

    def backward(self, pattern_QTS: Float[Tensor, "q t s"], g_RTD: Float[Tensor, "r t d"]) -> Float[Tensor, "r s d"]:
        """Gradients with respect to the normed input, from R gradients with respect to the output.

        One pattern serves every row.
        """
        groups = self.value_GHD.shape[0]
        rows, length, _ = g_RTD.shape
        heads, width = self.output_DQH.shape[1:]
        z_RTQH = (g_RTD @ self.output_DQH.reshape(-1, heads * width)).view(rows, length, heads, width)
        mixed_QSRH = torch.matmul(
            pattern_QTS.transpose(1, 2), z_RTQH.permute(2, 1, 0, 3).reshape(heads, length, rows * width)
        ).view(groups, heads // groups, length, rows, width)
        per_group_RSGH = mixed_QSRH.sum(1).permute(2, 1, 0, 3).reshape(rows, length, groups * width)
        return per_group_RSGH @ self.value_GHD.reshape(groups * width, -1)


class Block:
    """One transformer block, its parts found through the table."""

    def __init__(self, arch: Architecture, module: nn.Module, config: Any) -> None:
        self.arch, self.module, self.config = arch, module, config
        self.attn: Any = getattr(module, arch.attn)  # Any: their attributes differ from family to family
        self.mlp: nn.Module = getattr(module, arch.mlp)
        self.norm_attn: nn.Module = getattr(module, arch.norm_attn)
        self.norm_mlp: nn.Module = getattr(module, arch.norm_mlp)
        self.norm_attn_post: nn.Module | None = _optional(module, arch.norm_attn_post)
        self.norm_mlp_post: nn.Module | None = _optional(module, arch.norm_mlp_post)
        self.mlp_down: Any = getattr(self.mlp, arch.mlp_down)
        self.parallel = bool(arch.value == "neox" and getattr(module, "use_parallel_residual", False))

    def attention_weights(self) -> AttentionWeights:
        """Value and output maps, split per head from the family's fused layout."""
        cfg, arch = self.config, self.arch
        heads = cfg.num_attention_heads
        groups = getattr(cfg, "num_key_value_heads", None) or heads
        width = getattr(cfg, "head_dim", None) or cfg.hidden_size // heads
        d = cfg.hidden_size
        out = getattr(self.attn, arch.attn_out)
        if arch.value == "v_proj":
            v = self.attn.v_proj
            value, bias = v.weight.reshape(groups, width, d), v.bias
            output = out.weight.reshape(d, heads, width)
        elif arch.value == "gpt2":
            c = self.attn.c_attn  # Conv1D: weight is [in, out], q | k | v side by side
            value, bias = c.weight[:, 2 * d :].T.reshape(groups, width, d), c.bias[2 * d :]
            output = out.weight.T.reshape(d, heads, width)
        else:
            c = self.attn.query_key_value  # rows grouped per head as q | k | v
            value = c.weight.reshape(heads, 3, width, d)[:, 2]
            bias = None if c.bias is None else c.bias.reshape(heads, 3, width)[:, 2]
            output = out.weight.reshape(d, heads, width)
        return AttentionWeights(
            value.detach(),
            None if bias is None else bias.detach().reshape(groups, width),
            output.detach(),
            None if out.bias is None else out.bias.detach(),
        )


def linear_norm(arch: Architecture, norm: Any, x_TD: Float[Tensor, "*t d"]) -> LinearNorm:
    """The norm with its scale frozen at ``x_TD``, in the dtype of ``x_TD``."""
    weight = norm.weight.detach().to(x_TD.dtype)
    if arch.norm == "layer":
        assert isinstance(norm, nn.LayerNorm)
        variance = x_TD.var(-1, unbiased=False)
        scale = torch.rsqrt(variance + norm.eps)
        bias = None if norm.bias is None else norm.bias.detach().to(x_TD.dtype)
        return LinearNorm(weight, bias, True, scale)
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    scale = torch.rsqrt(x_TD.pow(2).mean(-1) + eps)
    return LinearNorm(weight + 1 if arch.norm == "rms_plus_one" else weight, None, False, scale)


def blocks_of(arch: Architecture, base: nn.Module, config: Any) -> Sequence[Block]:
    """The model's blocks in order of depth."""
    return [Block(arch, module, config) for module in getattr(base, arch.blocks)]


def _optional(module: nn.Module, name: str | None) -> nn.Module | None:
    return getattr(module, name) if name else None
