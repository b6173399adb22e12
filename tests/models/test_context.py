"""Positions of a model, from its config."""

from __future__ import annotations

from typing import Any

import pytest

from mechstudy.models.context import ContextLength, context_length

LLAMA = {"model_type": "llama", "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt2", "n_positions": 64}, ContextLength(64, "n_positions", True)),
        (LLAMA, ContextLength(4096, "max_position_embeddings", False)),
        ({"model_type": "gemma3", "text_config": LLAMA}, ContextLength(4096, "max_position_embeddings", False)),
        (LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 16_384),
        (LLAMA | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 16_384),
        (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 2048}}, 4096),
        (LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        ({"model_type": "llama"}, None),
        ({"model_type": "llama", "max_position_embeddings": "many"}, None),
    ],
)
def test_positions_are_read_from_the_config(config: dict[str, Any], expected: ContextLength | int | None):
    context = context_length(config)
    assert (context and context.n if isinstance(expected, int) else context) == expected


def test_a_text_that_is_too_long_names_the_field():
    text = "81 tokens, the model has 64 positions (n_positions)"
    assert ContextLength(64, "n_positions", True).exceeded(81) == text
