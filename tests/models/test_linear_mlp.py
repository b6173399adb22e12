"""An MLP's linear map at a prompt equals the MLP there, in every family."""

from __future__ import annotations

import pytest
import torch

from mechstudy.models.linear_mlp import linear_mlp
from mechstudy.models.sites import Site
from tests.support.tiny import ALL, tiny_model

TOKENS = torch.tensor([[5, 17, 200, 33, 9, 120, 42]])


def parts(family, layer=1):
    """The MLP of a layer, what it reads, and what its neurons hold."""
    model = tiny_model(family)
    kinds = ("mlp_in",) if model.blocks[layer].mlp_down is None else ("mlp_in", "mlp_act")
    out = model.forward(TOKENS, capture=[Site(kind, layer) for kind in kinds], logits_at=None).activations
    x, *acts = (out[Site(kind, layer)][0] for kind in kinds)
    return model.blocks[layer], x, acts


@pytest.mark.parametrize("family", ALL)
def test_the_linear_map_equals_the_mlp_at_the_prompt(family):
    block, x, acts = parts(family)
    mlp = linear_mlp(block, x)
    if mlp is None:
        assert not acts  # a mixture of experts
        return
    assert torch.allclose(mlp.neurons(x), acts[0], rtol=0, atol=1e-12)
    with torch.no_grad():
        written = block.mlp(x[None])[0] * block.residual_multiplier
    assert torch.allclose(mlp.forward(x), written, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "granite", "nemotron", "starcoder2"])
def test_the_backward_pass_is_the_transpose_of_the_forward_pass(family):
    block, x, _ = parts(family)
    mlp = linear_mlp(block, x)
    g = torch.randn(3, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    change = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    moved = mlp.forward(x + change) - mlp.forward(x)
    assert torch.allclose(mlp.linear(change), moved, atol=1e-12)
    assert torch.allclose((mlp.backward(g) * change).sum((1, 2)), (g * moved).sum((1, 2)), rtol=1e-10)
    cut = mlp.at(slice(4))
    assert torch.allclose(cut.backward(g[:, :4]), mlp.backward(g)[:, :4], atol=1e-14)


@pytest.mark.parametrize("family", ["llama", "gpt2", "glm4", "ernie4_5"])
def test_what_a_neuron_reads_gives_what_it_holds(family):
    block, x, [acts] = parts(family)
    position, neuron = torch.tensor([0, 3, 6, 6]), torch.tensor([1, 0, 63, 2])
    directions, constants = linear_mlp(block, x).readers(position, neuron)
    assert torch.allclose((directions * x[position]).sum(1) + constants, acts[position, neuron], atol=1e-12)


def test_a_neuron_at_zero_has_the_slope_of_its_activation():
    block, x, _ = parts("llama")
    mlp = linear_mlp(block, torch.zeros_like(x))
    assert torch.equal(mlp.neurons(torch.zeros_like(x)), torch.zeros_like(mlp.up_scale_TF))
    assert torch.isfinite(mlp.gate_scale_TF).all()
