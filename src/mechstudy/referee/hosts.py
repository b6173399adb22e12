"""Small random models that circuits are planted into, made by a seed."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from mechstudy.core.seeds import seed_for
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.loading import load_model
from mechstudy.referee.words import BOS, word_tokenizer

_WORDS = 160


def random_host(seed: int, *, n_layers: int = 5, d_model: int = 96, n_heads: int = 4) -> LanguageModel:
    """A Llama with random weights and a vocabulary of made-up words, in float64."""
    config = transformers.LlamaConfig(
        vocab_size=_WORDS + 1,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        head_dim=d_model // n_heads,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "host", "weights"))
        hf: Any = transformers.LlamaForCausalLM(config).double()
    words = [BOS, *(f"word{i:03d}" for i in range(_WORDS))]
    return load_model(hf, word_tokenizer(words), name=f"host {seed}", validate=False)
