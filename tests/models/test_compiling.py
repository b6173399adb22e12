"""Compiled captures give the rows of plain ones; copying tensors to a device changes nothing."""

from __future__ import annotations

import shutil

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.machine.devices import exact_products, float32_products
from mechstudy.models import compiling
from mechstudy.models.batches import captured
from mechstudy.models.compiling import compiled
from mechstudy.models.device_transfer import copied_ahead, to_device
from mechstudy.models.sites import Site
from tests.support.tiny import tiny_model

SITES = [Site("resid_pre", 0), Site("attn_out", 0), Site("mlp_in", 0), Site("mlp_out", 0), Site("resid_post", 0)]
TOKENS = torch.randint(1, 257, (3, 7), generator=torch.Generator().manual_seed(0))


def own_forwards(model) -> list[object]:
    return [m.__dict__.get("forward") for m in model.hf.modules()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler for torch.compile")
def test_a_compiled_model_captures_the_same_rows_at_every_site():
    model, said = tiny_model("llama", dtype="float32", n_layers=1), []
    before, plain = own_forwards(model), captured(model, TOKENS, SITES)
    with compiled(model, SITES, "force", said.append):
        assert own_forwards(model) != before
        compiled_rows = captured(model, TOKENS, SITES)
    torch.testing.assert_close(compiled_rows, plain, rtol=1e-5, atol=1e-6)
    assert said and own_forwards(model) == before


@pytest.mark.parametrize(("kind", "opened", "other"), [("mlp_act", "mlp", "attn"), ("attn_heads", "attn", "mlp")])
def test_a_part_is_not_compiled_when_its_inside_is_captured(monkeypatch, kind, opened, other):
    monkeypatch.setattr(compiling.shutil, "which", lambda _: "/usr/bin/g++")  # compiling would happen at the first call
    model = tiny_model("llama")
    with compiled(model, [*SITES, Site(kind, 0)], "force", lambda _: None):
        assert not any("forward" in getattr(block, opened).__dict__ for block in model.blocks)
        assert "forward" in getattr(model.blocks[0], other).__dict__


def test_on_needs_cuda_and_force_needs_a_compiler(monkeypatch):
    model, said = tiny_model("llama"), []
    before = own_forwards(model)
    with compiled(model, SITES, "on", said.append):
        assert own_forwards(model) == before
    assert "compute.compile: on is for CUDA" in said[0] and "force" in said[0]
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    with (
        pytest.raises(MechstudyError, match="no C\\+\\+ compiler"),
        compiled(model, SITES, "force", said.append),
    ):
        pass


def test_tf32_ends_with_its_block_even_after_an_error():
    torch.set_float32_matmul_precision("highest")
    with pytest.raises(ValueError, match="inside"), float32_products(True):
        assert torch.get_float32_matmul_precision() == "high"
        raise ValueError("inside")
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("high")
    with float32_products(False):
        assert torch.get_float32_matmul_precision() == "highest"
    exact_products()
    assert torch.get_float32_matmul_precision() == "highest"


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
def test_batches_copied_ahead_keep_their_order_and_values(device):
    slab, closed = torch.zeros(4, 8), []

    def batches():
        try:
            for number in range(5):
                slab.fill_(number)
                x = slab.clone() if device == "cpu" else slab  # CUDA gets a copy: the original may be changed
                yield x, x if number % 2 else x + 0.5
        finally:
            closed.append(True)

    pairs = list(copied_ahead(batches(), device))
    assert [float(x[0, 0]) for x, _ in pairs] == [0, 1, 2, 3, 4] and closed
    assert [x is y for x, y in pairs] == [False, True, False, True, False]
    assert [float(y[0, 0]) for _, y in pairs] == [0.5, 1, 2.5, 3, 4.5]
    assert all(x.device.type == device for x, _ in pairs)
    assert torch.equal(to_device(TOKENS[:, ::2], device).cpu(), TOKENS[:, ::2])
