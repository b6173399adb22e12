"""A model's sizes, read from its ``config.json`` alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechstudy.core.errors import MechstudyError

# Hugging Face's defaults, which config files omit.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "mistral": {"num_key_value_heads": 8},
    "gemma2": {"head_dim": 256, "num_key_value_heads": 4, "vocab_size": 256_000, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 256, "num_key_value_heads": 4, "vocab_size": 262_208, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 50_257, "n_positions": 1024, "tie_word_embeddings": True},
    "gpt_neox": {"attention_bias": True},
}
FAMILIES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX",
}
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
}


@dataclass(frozen=True)
class ModelShapes:
    """Sizes of a model.

    ``n_embedding_parameters`` counts embeddings of tokens and positions and, unless it is tied, the unembedding.
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

    def width(self, kind: str) -> int:
        """Number of coordinates at a kind of site."""
        return self.d_mlp if kind == "mlp_act" else self.d_model

    @property
    def n_block_parameters(self) -> int:
        """Parameters of all blocks and the final norm, which process every token."""
        return self.n_parameters - self.n_embedding_parameters


def shapes_of(config: Mapping[str, Any]) -> ModelShapes:
    """Sizes of the model that a Hugging Face ``config.json`` describes.

    Raises:
        MechstudyError: the family is not supported, or a size is missing or not a positive integer.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise MechstudyError(
            f"models of type {model_type!r} are not supported",
            facts={"supported": ", ".join(f"{name} ({kind})" for kind, name in FAMILIES.items())},
            fix="choose a model of a supported family",
        )
    values = {**_DEFAULTS[model_type], **{key: value for key, value in config.items() if value is not None}}

    def size(name: str, default: int | None = None) -> int:
        key = _GPT2_NAMES.get(name, name) if model_type == "gpt2" else name
        value = values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MechstudyError(f"config.json: {key} should be a positive integer, not {value!r}")
        return value

    d, heads, layers = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
    gpt2, neox = model_type == "gpt2", model_type == "gpt_neox"
    shapes = _Sizes(
        d=d,
        ff=size("intermediate_size", 4 * d if gpt2 else None),
        heads=heads,
        groups=heads if gpt2 or neox else size("num_key_value_heads", heads),
        width=d // heads if gpt2 or neox else size("head_dim", d // heads),
    )
    tied = bool(values.get("tie_word_embeddings", False))
    vocabulary = size("vocab_size")
    embedding = vocabulary * d * (1 if tied else 2) + (size("n_positions") * d if gpt2 else 0)
    block = _gpt_block(shapes, bias=gpt2 or bool(values["attention_bias"])) if gpt2 or neox else None
    if block is None:
        block = _gated_block(shapes, model_type, values)
    final_norm = 2 * d if gpt2 or neox else d
    return ModelShapes(
        n_layers=layers,
        d_model=d,
        d_mlp=shapes.ff,
        n_heads=heads,
        n_kv_heads=shapes.groups,
        head_dim=shapes.width,
        vocab_size=vocabulary,
        tied=tied,
        family=FAMILIES[model_type],
        model_type=model_type,
        n_parameters=embedding + layers * block + final_norm,
        n_embedding_parameters=embedding,
    )


@dataclass(frozen=True)
class _Sizes:
    d: int
    ff: int
    heads: int
    groups: int
    width: int


def _gated_block(s: _Sizes, model_type: str, values: Mapping[str, Any]) -> int:
    """Parameters of a block with rotary attention, RMS norms and a gated MLP."""
    queries, keys = s.heads * s.width, s.groups * s.width
    attention = s.d * (queries + 2 * keys) + queries * s.d
    if model_type == "qwen2":
        attention += queries + 2 * keys
    elif values.get("attention_bias"):
        attention += queries + 2 * keys + s.d
    if model_type in ("qwen3", "gemma3_text"):
        attention += 2 * s.width  # norms of queries and keys
    mlp = 3 * s.d * s.ff + (2 * s.ff + s.d if values.get("mlp_bias") else 0)
    norms = 4 if model_type.startswith("gemma") else 2
    return attention + mlp + norms * s.d


def _gpt_block(s: _Sizes, *, bias: bool) -> int:
    """Parameters of a block with full attention, layer norms and a plain MLP."""
    attention = 4 * s.d * s.d + (4 * s.d if bias else 0)
    return attention + 2 * s.d * s.ff + s.ff + s.d + 4 * s.d
