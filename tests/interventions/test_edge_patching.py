"""Edges measured by exact patching (float64, tiny random models)."""

import pytest
import torch

from mechstudy.circuits.component_edges import edge_effects
from mechstudy.circuits.components import Components
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.interventions.edge_patching import measure_edge_effects
from mechstudy.interventions.node_patching import measure_effects
from tests.support.interventions_world import pairs
from tests.support.tiny import ALL, tiny_model

SOME = pairs(3, lengths=(7, 9))
NAMES = NamedPositions.of(SOME)


def with_near_twins(model, step: float):
    """The model, with each token of the prompts' corrupted subjects embedded next to the clean one."""
    rows = model.hf.get_input_embeddings().weight
    noise = torch.Generator().manual_seed(0)
    for pair in SOME:
        clean, corrupted = pair.clean_tokens[2], pair.corrupted_tokens[2]
        rows[corrupted] = rows[clean] + step * torch.randn(rows.shape[1], generator=noise, dtype=rows.dtype)
    return model


@pytest.mark.parametrize("family", ALL)
def test_edges_of_a_small_change_are_those_of_the_gradient(family):
    model = with_near_twins(tiny_model(family, n_layers=2), 1e-4)
    nodes = Components(model, NAMES)
    measured = measure_edge_effects(model, nodes, SOME, batch_tokens=60)
    predicted = edge_effects(model, nodes, SOME)
    largest = predicted.effects_NUV.abs().max()
    assert largest > 1e-8
    assert (measured.effects_NUV - predicted.effects_NUV).abs().max() < 5e-3 * largest
    assert torch.equal(measured.reads_UV, predicted.reads_UV)


@pytest.mark.parametrize("family", ("llama", "gemma2", "gpt2", "neox"))
def test_the_only_edge_of_the_last_mlp_is_its_own_effect(family):
    model = tiny_model(family)
    nodes = Components(model, NAMES)
    edges = measure_edge_effects(model, nodes, SOME)
    last = edges.components.index(next(c for c in edges.components if str(c).startswith("mlp.2")))
    alone = measure_effects(model, nodes, SOME)
    expected_N = alone.effects[nodes.index([f"mlp.2@{name}" for name in NAMES.names])]
    torch.testing.assert_close(edges.effects_NUV[:, last, -1], expected_N, rtol=1e-6, atol=1e-9)
    assert expected_N.abs().max() > 1e-3


def test_a_target_that_writes_nothing_has_no_edges():
    model = tiny_model("llama")
    width = slice(model.head_dim, 2 * model.head_dim)
    model.blocks[1].attn_proj.weight[:, width] = 0
    edges = measure_edge_effects(model, Components(model, NAMES), SOME)
    silent = next(v for v, node in enumerate(edges.components) if str(node).startswith("head.1.1"))
    assert edges.effects_NUV[:, :, silent].abs().max() < 1e-12
    assert edges.effects_NUV[:, :, silent + 1].abs().max() > 1e-4, "its neighbour has some"


def test_batches_do_not_change_effects():
    model = tiny_model("llama", n_layers=2)
    nodes = Components(model, NAMES)
    one, other = (measure_edge_effects(model, nodes, SOME, batch_tokens=n).effects_NUV for n in (9, 4096))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
