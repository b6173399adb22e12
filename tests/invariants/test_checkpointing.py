"""Gradients with checkpointing are the same bits as without."""

from __future__ import annotations

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.targets import AnswerContrast
from mechstudy.models import graph_memory
from mechstudy.models.graph_memory import graph_bytes, should_checkpoint
from mechstudy.models.sites import Site
from tests.support.interventions_world import mlp_gradients
from tests.support.tiny import FAMILIES, tiny_model

TOKENS = torch.tensor([5, 17, 200, 31, 8, 90, 3])
TARGET = AnswerContrast(Contrast((5,), (9,)))


def hooks_of(model) -> list[tuple[int, int, bool]]:
    """Hooks and replaced forwards of every module."""
    modules = model.hf.modules()
    return [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__) for m in modules]


@pytest.mark.parametrize("family", FAMILIES)
def test_live_gradients_are_the_same_bits(family):
    model = tiny_model(family)
    kept = mlp_gradients(model, TOKENS, TARGET, [0, 1, 2], "off")
    again = mlp_gradients(model, TOKENS, TARGET, [0, 1, 2], "on")
    assert all(torch.equal(kept[layer], again[layer]) and kept[layer].abs().max() > 0 for layer in (0, 1, 2))


def test_edits_run_twice_captures_once_and_hooks_are_removed():
    model, calls = tiny_model("llama"), []
    model.forward(TOKENS[None])
    before_any = hooks_of(model)
    added = torch.zeros(1, len(TOKENS), model.d_model, dtype=model.dtype, requires_grad=True)

    def edit(x):
        calls.append(x.detach().clone())
        return x * x + added

    def gradient_and_captures(again: bool):
        sites = [Site("mlp_out", 1), Site("resid_pre", 1), Site("resid_post", 2)]
        out = model.forward(
            TOKENS[None], edits={sites[0]: edit, sites[1]: edit}, capture=sites, grad=True, checkpointing=again
        )
        before = {site: rows.detach().clone() for site, rows in out.activations.items()}
        gradient = torch.autograd.grad(out.logits[0, 5] + out.activations[sites[2]].sum(), added)[0]
        assert all(torch.equal(before[site], out.activations[site]) for site in sites)
        return gradient, before

    kept, first = gradient_and_captures(False)
    assert len(calls) == 2
    again, second = gradient_and_captures(True)
    assert torch.equal(kept, again) and all(torch.equal(first[site], second[site]) for site in first)
    assert len(calls) == 5  # the block's own input is edited outside of the recomputation
    assert torch.equal(calls[3], calls[4])
    assert hooks_of(model) == before_any


def test_auto_checkpoints_only_what_would_not_fit(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(graph_memory, "available_memory_bytes", lambda: 1 << 40)
    assert not should_checkpoint("auto", model, 1, 7) and should_checkpoint("on", model, 1, 7)
    monkeypatch.setattr(graph_memory, "available_memory_bytes", lambda: 1 << 10)
    assert should_checkpoint("auto", model, 1, 7) and not should_checkpoint("off", model, 1, 7)


def test_the_estimate_is_close_to_what_autograd_keeps():
    model = tiny_model("llama", n_layers=6, d=64)
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    tokens = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(2, 64, model.d_model, dtype=model.dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.forward(tokens, edits={Site("resid_pre", 0): lambda x: x + zero}, grad=True)
    assert out.logits is not None
    kept_bytes = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    assert 0.8 < graph_bytes(model, 2, 64) / kept_bytes < 1.25
