"""Every family of the table, saved and loaded again, in each precision and under each attention implementation."""

from __future__ import annotations

import pytest
import torch

from mechstudy.models.loading import load_model
from mechstudy.models.validate import TOLERANCE
from tests.support.tiny import ALL, save_tiny

WITHOUT_SDPA = ("gemma2",)


@pytest.fixture(scope="module", params=ALL)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files") / request.param
    return save_tiny(folder, request.param), folder, request.param


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_family_loads_from_files_and_its_identities_hold(family, dtype):
    original, folder, name = family
    tokens = torch.tensor([original.encode("the keys")])
    expected = original.forward(tokens).logits
    for attention in ("auto", "eager", "sdpa"):
        if attention == "sdpa" and name in WITHOUT_SDPA:
            continue
        model = load_model(folder, dtype=dtype, device="cpu", attention=attention)  # checks the identities
        assert model.dtype == getattr(torch, dtype)
        error = (model.forward(tokens).logits.float() - expected).abs().max() / expected.abs().max()
        assert error <= TOLERANCE[model.dtype], (attention, float(error))
