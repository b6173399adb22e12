"""The family table: what each supported family calls its parts, and what of its sizes a config file leaves out.

Families' attribute names occur nowhere else. A wrong name or norm is found by the exact identities of `validate_model`
when a model is loaded, a wrong size by the tests, which count the parameters of a model of each family. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mechstudy.core.errors import MechstudyError

Bias = Literal["none", "always", "attention_bias", "attention_out_bias", "use_bias", "mlp_bias"]


@dataclass(frozen=True)
class Family:
    """A row of the table. Names of parts are relative to the block; None where the family has no such norm.

    ``parallel`` says whether attention and MLP of a block read the same residual: never, always, or as the block's
    ``use_parallel_residual`` says. The biases name the config's field that decides. ``qk_norm`` is the norm of queries
    and keys: of each head, of all heads side by side, or none (Cohere's config may ask for one of each head);
    ``qk_norm_last`` says that it comes after the rotary map. ``rotary`` says which layers have that map: all that the
    model gives one, those whose attention says ``use_rope``, those with a sliding window, or these and all layers of a
    model without any window. A gated MLP without ``mlp_gate`` has gates above the rest in one
    matrix, ``mlp_up``. ``defaults`` are sizes that config files may omit.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str = "layers"
    final_norm: str = "norm"
    attn: str = "self_attn"
    mlp: str = "mlp"
    norm_attn: str | None = "input_layernorm"
    norm_attn_post: str | None = None
    norm_mlp: str | None = "post_attention_layernorm"
    norm_mlp_post: str | None = None
    mlp_gate: str | None = "gate_proj"
    mlp_up: str = "up_proj"
    mlp_act: str = "act_fn"
    mlp_down: str = "down_proj"
    attn_out: str = "o_proj"
    value: Literal["v_proj", "qkv_proj", "gpt2", "neox"] = "v_proj"
    norm: Literal["rms", "rms_plus_one", "layer", "layer_plus_one", "layer_without_bias", "layer_without_weight"] = (
        "rms"
    )
    position_embedding: str | None = None
    parallel: Literal["never", "always", "config"] = "never"
    gated: bool = True
    qkv_bias: Bias = "attention_bias"
    out_bias: Bias = "attention_bias"
    mlp_bias: Bias = "mlp_bias"
    qk_norm: Literal["head", "whole"] | None = None
    qk_norms: tuple[str, str] = ("q_norm", "k_norm")
    qk_norm_last: bool = False
    rotary: Literal["all", "use_rope", "windowed", "windowed_or_all"] = "all"
    experts: Literal["mixtral", "qwen_moe"] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


_SANDWICH: dict[str, Any] = {
    "norm_attn_post": "post_attention_layernorm",
    "norm_mlp": "pre_feedforward_layernorm",
    "norm_mlp_post": "post_feedforward_layernorm",
}
_POST_NORM: dict[str, Any] = {
    "norm_attn": None,
    "norm_attn_post": "post_attention_layernorm",
    "norm_mlp": None,
    "norm_mlp_post": "post_feedforward_layernorm",
}
_GEMMA: dict[str, Any] = {"norm": "rms_plus_one", "mlp_bias": "none"}
_FUSED_MLP: dict[str, Any] = {"mlp_gate": None, "mlp_up": "gate_up_proj", "mlp_act": "activation_fn"}
_TIED = {"tie_word_embeddings": True}
_GEMMA_SIZES = {"head_dim": 256, **_TIED}

FAMILIES: tuple[Family, ...] = (
    Family("Llama", ("llama",)),
    Family("Qwen2", ("qwen2",), qkv_bias="always", out_bias="none", mlp_bias="none"),
    Family("Qwen3", ("qwen3",), qk_norm="head", mlp_bias="none", defaults={"head_dim": 128}),
    Family("Mistral", ("mistral",), qkv_bias="none", out_bias="none", mlp_bias="none",
           defaults={"num_key_value_heads": 8}),
    Family("Ministral", ("ministral", "ministral3"), qkv_bias="none", out_bias="none", mlp_bias="none",
           defaults={"num_key_value_heads": 8}),
    Family("Gemma", ("gemma",), **_GEMMA, defaults=_GEMMA_SIZES | {"vocab_size": 256_000, "num_key_value_heads": 16}),
    Family("Gemma 2", ("gemma2",), **_SANDWICH, **_GEMMA,
           defaults=_GEMMA_SIZES | {"vocab_size": 256_000, "num_key_value_heads": 4}),
    Family("Gemma 3 (text)", ("gemma3_text",), **_SANDWICH, **_GEMMA, qk_norm="head",
           defaults=_GEMMA_SIZES | {"vocab_size": 262_208, "num_key_value_heads": 4}),
    Family("Phi-3 and Phi-4", ("phi3",), **_FUSED_MLP, value="qkv_proj", qkv_bias="none", out_bias="none",
           mlp_bias="none"),
    Family("OLMo 2 and 3", ("olmo2", "olmo3"), **_POST_NORM, qk_norm="whole", mlp_bias="none"),
    Family("OLMo", ("olmo",), norm="layer_without_weight", mlp_bias="none"),
    Family("Granite", ("granite",)),
    Family("SmolLM3", ("smollm3",), rotary="use_rope", defaults={"num_key_value_heads": 4} | _TIED),
    Family("EXAONE 4", ("exaone4",), **_POST_NORM, qk_norm="head", rotary="windowed_or_all", qkv_bias="none",
           out_bias="none", mlp_bias="none"),
    Family("GPT-2", ("gpt2",), blocks="h", final_norm="ln_f", attn="attn", norm_attn="ln_1", norm_mlp="ln_2",
           mlp_up="c_fc", mlp_act="act", mlp_down="c_proj", attn_out="c_proj", value="gpt2", norm="layer",
           position_embedding="wpe", gated=False,
           qkv_bias="always", out_bias="always", mlp_bias="always",
           names={"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                  "intermediate_size": "n_inner"},
           defaults={"vocab_size": 50_257, "n_positions": 1024} | _TIED),
    Family("GPT-NeoX", ("gpt_neox",), final_norm="final_layer_norm", attn="attention",
           mlp_up="dense_h_to_4h", mlp_act="act", mlp_down="dense_4h_to_h", attn_out="dense", value="neox",
           norm="layer", parallel="config", gated=False, mlp_bias="always", defaults={"attention_bias": True}),
    Family("StarCoder2", ("starcoder2",), norm="layer", mlp_up="c_fc", mlp_act="act", mlp_down="c_proj",
           gated=False, qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias",
           defaults={"use_bias": True, "num_key_value_heads": 2} | _TIED),
    Family("Nemotron", ("nemotron",), norm="layer_plus_one", gated=False),
    Family("Cohere (Command R)", ("cohere", "cohere2"), norm="layer_without_bias", norm_mlp="input_layernorm",
           parallel="always", rotary="windowed", mlp_bias="none", defaults=_TIED),
    Family("GLM-4", ("glm4",), **_FUSED_MLP, value="v_proj", norm_attn_post="post_self_attn_layernorm",
           norm_mlp_post="post_mlp_layernorm", out_bias="none", mlp_bias="none",
           defaults={"head_dim": 128, "num_key_value_heads": 2, "attention_bias": True}),
    Family("Seed-OSS", ("seed_oss",), out_bias="attention_out_bias",
           defaults={"head_dim": 128, "num_key_value_heads": 8, "attention_bias": True}),
    Family("ERNIE 4.5", ("ernie4_5",), qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias",
           defaults={"head_dim": 128, "num_key_value_heads": 2} | _TIED),
    Family("Hunyuan (dense)", ("hunyuan_v1_dense",), qk_norm="head", qk_norms=("query_layernorm", "key_layernorm"),
           qk_norm_last=True, mlp_bias="none"),
    Family("Helium", ("helium",), out_bias="none", defaults={"head_dim": 128, "num_key_value_heads": 20}),
    Family("Arcee", ("arcee",), gated=False),
    Family("Mixtral", ("mixtral",), experts="mixtral", qkv_bias="none", out_bias="none", mlp_bias="none",
           defaults={"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}),
    Family("Qwen3-MoE", ("qwen3_moe",), experts="qwen_moe", qk_norm="head", mlp_bias="none",
           defaults={"num_key_value_heads": 4, "moe_intermediate_size": 768, "num_experts": 128,
                     "num_experts_per_tok": 8}),
)  # fmt: skip
_BY_TYPE = {kind: family for family in FAMILIES for kind in family.model_types}


def family_of(model_type: str) -> Family:
    """The table's row for a Hugging Face ``model_type``.

    Raises:
        MechstudyError: the family is not supported; the message lists those that are.
    """
    if model_type in _BY_TYPE:
        return _BY_TYPE[model_type]
    raise MechstudyError(
        f"models of type {model_type!r} are not supported",
        facts={"supported": ", ".join(f"{f.name} ({'/'.join(f.model_types)})" for f in FAMILIES)},
        fix="a model of one of these families",
    )
