"""Edges split exactly over the heads that they run through (float64, tiny random models)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechstudy.circuits.head_loadings import head_loadings
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.rows import SourceIndex, direct_effects, feature_targets
from mechstudy.circuits.targets import output_target
from tests.support.bases_world import KINDS, bases
from tests.support.clt_world import random_clt
from tests.support.tiny import tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])


def world(family, kind, elsewhere="errors"):
    model = tiny_model(family)
    basis = random_clt(model).layers() if kind == "clt" else bases(model, kind)
    prompt = linearise(model, basis, TOKENS, elsewhere=elsewhere, first_is_constant=True)
    index = SourceIndex(prompt)
    direction = torch.randn(model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = [output_target(prompt, 6, direction, 0.0), output_target(prompt, 4, direction, 0.0)]
    for layer, x in enumerate(prompt.layers):
        if x.nodes is not None:
            targets += feature_targets(prompt, layer, range(0, len(x.nodes.value_M), max(1, len(x.nodes.value_M) // 6)))
    return prompt, index, targets


def every_edge(index, targets):
    rows, columns = torch.arange(len(targets)), torch.arange(0, index.biases, max(1, index.biases // 120))
    return rows.repeat_interleave(len(columns)), columns.repeat(len(rows))


def without_head(prompt, layer, head, position=None):
    """The prompt with one head's pattern zero, at one query position if it is given."""
    pattern = prompt.layers[layer].pattern_QTS.clone()
    pattern[head, slice(None) if position is None else position] = 0
    layers = list(prompt.layers)
    layers[layer] = replace(layers[layer], pattern_QTS=pattern)
    return replace(prompt, layers=tuple(layers))


def without_attention(prompt):
    layers = tuple(replace(x, pattern_QTS=torch.zeros_like(x.pattern_QTS)) for x in prompt.layers)
    return replace(prompt, layers=layers)


@pytest.mark.parametrize("elsewhere", ["errors", "linear"])
@pytest.mark.parametrize("kind", [*KINDS, "clt"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_the_direct_part_is_the_edge_without_attention(family, kind, elsewhere):
    """What is left after every head's part is what a model whose heads write nothing has."""
    prompt, index, targets = world(family, kind, elsewhere if kind != "clt" else "errors")
    row_E, column_E = every_edge(index, targets)
    split = head_loadings(prompt, index, targets, row_E, column_E)
    direct = direct_effects(without_attention(prompt), index, targets)[row_E, column_E]
    assert torch.allclose(split.direct_E, direct, atol=1e-10)
    assert split.loading_ELHT.abs().sum() > 0


@pytest.mark.parametrize("kind", ["skip transcoders", "neurons", "sae attn_out"])
def test_a_heads_part_leaves_with_it_where_it_is_the_only_one_passed(kind):
    """With attention of one layer alone, removing a head at a query removes exactly its loading."""
    prompt, index, targets = world("llama", kind)
    layers = list(without_attention(prompt).layers)
    layers[1] = prompt.layers[1]
    alone = replace(prompt, layers=tuple(layers))
    row_E, column_E = every_edge(index, targets)
    split = head_loadings(alone, index, targets, row_E, column_E)
    whole = direct_effects(alone, index, targets)[row_E, column_E]
    for head, query in ((0, 6), (3, 4), (2, 5)):
        less = direct_effects(without_head(alone, 1, head, query), index, targets)[row_E, column_E]
        assert torch.allclose(whole - less, split.loading_ELHT[:, 1, head, query], atol=1e-10)
    assert not split.loading_ELHT[:, [0, 2]].any()
