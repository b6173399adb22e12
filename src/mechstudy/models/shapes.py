"""A model's sizes, read from its ``config.json`` alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.models.families import Bias, Family, family_of


@dataclass(frozen=True)
class ModelShapes:
    """Sizes of a model.

    ``n_embedding_parameters`` counts embeddings of tokens and positions and, unless it is tied, the unembedding;
    ``n_idle_parameters`` those of the experts that a token does not choose. ``d_mlp`` of a mixture of experts is the
    width of a token's experts together.
    """

    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    family: str
    model_type: str
    n_parameters: int
    n_embedding_parameters: int
    n_idle_parameters: int = 0

    def width(self, kind: str) -> int:
        """Number of coordinates at a kind of site."""
        inside = {"mlp_act": self.d_mlp, "attn_heads": self.n_heads * self.head_dim}
        return inside.get(kind, self.d_model)

    @property
    def n_block_parameters(self) -> int:
        """Parameters of all blocks and the final norm that process a token."""
        return self.n_parameters - self.n_embedding_parameters - self.n_idle_parameters


def shapes_of(config: Mapping[str, Any]) -> ModelShapes:
    """Sizes of the model that a Hugging Face ``config.json`` describes.

    Raises:
        MechstudyError: the family is not supported, or a size is missing or not a positive integer.
    """
    family = family_of(str(config.get("model_type")))
    sizes = _Config(family, config)
    d, layers, vocabulary = sizes["hidden_size"], sizes["num_hidden_layers"], sizes["vocab_size"]
    heads = sizes["num_attention_heads"]
    groups = heads if family.value in ("gpt2", "neox") else sizes.get("num_key_value_heads", heads)
    width = d // heads if family.value in ("gpt2", "neox") else sizes.get("head_dim", d // heads)
    tied = bool(sizes.values.get("tie_word_embeddings", False))
    positions = sizes["n_positions"] * d if family.position_embedding else 0
    embedding = vocabulary * d * (1 if tied else 2) + positions

    attention = _attention(family, sizes, d, heads * width, groups * width, width)
    norms = [family.norm_attn, family.norm_attn_post, family.norm_mlp, family.norm_mlp_post]
    shared = family.parallel == "always"  # one norm before both
    rest = layers * (attention + (len([n for n in norms if n]) - shared) * _norm(family, d)) + _norm(family, d)
    plain = 4 * d if family.value == "gpt2" else None
    if family.experts is None:
        d_mlp = sizes.get("intermediate_size", plain)
        total = active = layers * _mlp(family, sizes, d, d_mlp)
    else:
        d_mlp, total, active = _experts(family, sizes, d, layers)
    return ModelShapes(
        n_layers=layers,
        d_model=d,
        d_mlp=d_mlp,
        n_heads=heads,
        n_kv_heads=groups,
        head_dim=width,
        vocab_size=vocabulary,
        tied=tied,
        family=family.name,
        model_type=str(config["model_type"]),
        n_parameters=embedding + rest + total,
        n_embedding_parameters=embedding,
        n_idle_parameters=total - active,
    )


class _Config:
    """Sizes of a config file, under the names that most families use."""

    def __init__(self, family: Family, config: Mapping[str, Any]) -> None:
        self._names = family.names
        self.values = {**family.defaults, **{key: value for key, value in config.items() if value is not None}}

    def __getitem__(self, name: str) -> int:
        return self.get(name, None)

    def get(self, name: str, default: int | None) -> int:
        key = self._names.get(name, name)
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MechstudyError(f"config.json: {key} should be a positive integer, not {value!r}")
        return value

    def has(self, bias: Bias) -> bool:
        return bias == "always" or (bias != "none" and bool(self.values.get(bias, False)))


def _attention(family: Family, sizes: _Config, d: int, queries: int, keys: int, width: int) -> int:
    """Parameters of a block's attention."""
    n = d * (queries + 2 * keys) + queries * d
    if sizes.has(family.qkv_bias):
        n += queries + 2 * keys
    if sizes.has(family.out_bias):
        n += d
    return n + {None: 0, "head": 2 * width, "whole": queries + keys}[family.qk_norm]


def _norm(family: Family, d: int) -> int:
    return {"layer": 2 * d, "layer_plus_one": 2 * d, "layer_without_weight": 0}.get(family.norm, d)


def _mlp(family: Family, sizes: _Config, d: int, d_mlp: int) -> int:
    """Parameters of a dense MLP."""
    wide = 2 if family.gated else 1
    return (wide + 1) * d * d_mlp + (wide * d_mlp + d if sizes.has(family.mlp_bias) else 0)


def _experts(family: Family, sizes: _Config, d: int, layers: int) -> tuple[int, int, int]:
    """Of a mixture of experts: the width that a token meets, and all MLPs' parameters: in total, and per token."""
    chosen = sizes["num_experts_per_tok"]
    n = sizes["num_local_experts" if "num_local_experts" in sizes.values else "num_experts"]  # before transformers 5
    if family.experts == "mixtral":
        width, sparse = sizes["intermediate_size"], layers
    else:
        width = sizes["moe_intermediate_size"]
        step, dense_only = sizes.get("decoder_sparse_step", 1), sizes.values.get("mlp_only_layers") or []
        sparse = sum(layer not in dense_only and (layer + 1) % step == 0 for layer in range(layers))
    dense = (layers - sparse) * _mlp(family, sizes, d, sizes.get("intermediate_size", width))
    expert = _mlp(family, sizes, d, width)
    return chosen * width, dense + sparse * (n * expert + n * d), dense + sparse * (chosen * expert + n * d)
