"""Tiny random models of every supported family, in float64, for exact invariants. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from mechstudy.models import families
from mechstudy.models.language_model import DTYPES, LanguageModel

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "neox")
OTHERS = tuple(
    kind
    for family in families.FAMILIES
    for kind in family.model_types
    if kind not in ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_neox")
)
ALL = (*FAMILIES, *(pytest.param(family, marks=pytest.mark.slow) for family in OTHERS))
"""To parametrise tests: the first eight run in `make check` too."""
# Where a family's default would leave the tiny model without what makes the family: more than one expert, ...
_OWN = {
    "granite": {
        "residual_multiplier": 0.3,
        "embedding_multiplier": 5.0,
        "logits_scaling": 4.0,
        "attention_multiplier": 0.2,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
    "phi3": {"original_max_position_embeddings": 64, "max_position_embeddings": 64},
    "nemotron": {"hidden_act": "relu2"},
    "helium": {"attention_bias": True},
}


def tiny_tokenizer(bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer: 256 byte tokens and <|bos|>, put first when ``bos``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|bos|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<|bos|>"))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(["<|bos|>"])
    if bos:
        tok.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|bos|>")


def tiny_config(family: str, n_layers: int = 3, d: int = 32):
    """A Hugging Face config of the family with 4 heads (2 kv heads where grouped), 260 tokens."""
    common = {"vocab_size": 260, "hidden_size": d, "num_hidden_layers": n_layers, "num_attention_heads": 4}
    modern = common | {
        "num_key_value_heads": 2,
        "intermediate_size": 2 * d,
        "head_dim": d // 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if family in OTHERS:
        return transformers.CONFIG_MAPPING[family](**modern | _OWN.get(family, {}))
    gemma = modern | {"query_pre_attn_scalar": d // 4, "sliding_window": 4}
    return {
        "llama": lambda: transformers.LlamaConfig(**modern),
        "qwen2": lambda: transformers.Qwen2Config(**modern),
        "qwen3": lambda: transformers.Qwen3Config(**modern),
        "mistral": lambda: transformers.MistralConfig(**modern, sliding_window=None),
        "gemma2": lambda: transformers.Gemma2Config(**gemma),
        "gemma3": lambda: transformers.Gemma3TextConfig(**gemma),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=260,
            n_embd=d,
            n_layer=n_layers,
            n_head=4,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
        ),
        "neox": lambda: transformers.GPTNeoXConfig(
            **common, intermediate_size=2 * d, use_parallel_residual=True, bos_token_id=0, eos_token_id=0
        ),
    }[family]()


def tiny_model(
    family: str = "llama",
    dtype: str = "float64",
    n_layers: int = 3,
    d: int = 32,
    seed: int = 0,
    bos: bool = False,
) -> LanguageModel:
    """A random model whose biases and norm weights are random too, so that none can be forgotten."""
    torch.manual_seed(seed)
    config = tiny_config(family, n_layers, d)
    hf = transformers.AutoModelForCausalLM.from_config(config).to(DTYPES[dtype])
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm = "norm" in name or "ln_" in name
            spread = 0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_((1.0 if is_norm and name.endswith("weight") else 0.0) + spread * noise)
    if dtype == "float64":
        _exact_norms(hf)
    arch = families.family_of(config.model_type)
    return LanguageModel(hf, tiny_tokenizer(bos), arch, f"tiny-{family}")


def save_tiny(folder: Path, family: str = "llama", **how: int) -> LanguageModel:
    """A `tiny_model` in float32, which is written into a folder with its tokenizer."""
    model = tiny_model(family, dtype="float32", **how)
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return model


def _exact_norms(hf) -> None:
    """Hugging Face's own norms compute in fp32 whatever the model's dtype; here they keep float64."""
    for module in hf.modules():
        if type(module).__name__ in ("CohereLayerNorm", "Cohere2LayerNorm", "OlmoLayerNorm"):

            def centred(x, module=module):
                weight = getattr(module, "weight", None)
                return torch.nn.functional.layer_norm(
                    x, x.shape[-1:], weight, None, getattr(module, "variance_epsilon", 1e-5)
                )

            module.forward = centred
        if not type(module).__name__.endswith("RMSNorm"):
            continue
        plus_one = type(module).__name__.startswith("Gemma")
        eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps

        def forward(x, module=module, eps=eps, plus_one=plus_one):
            weight = module.weight + 1 if plus_one else module.weight
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

        module.forward = forward
