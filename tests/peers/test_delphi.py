"""Our export of features, read by delphi's own loader."""

from __future__ import annotations

import pytest
import torch

from mechstudy.features.delphi import LATENTS, write_delphi
from mechstudy.models.sites import Site
from tests.support.dictionary_worlds import exact_sae
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.peers

WINDOW = 8
TOKENS = torch.randint(1, 250, (12, 4 * WINDOW), generator=torch.Generator().manual_seed(0))
CONFIG = {"model_name": "acme/tiny", "dataset_repo": "", "dataset_split": "", "dataset_name": "",
          "dataset_column": "text", "batch_size": 4}  # fmt: skip


def test_delphi_finds_every_feature_with_its_frequency_and_strongest_window(delphi, tmp_path):
    model, chosen = tiny_model("llama"), {0: [3, 40], 2: [5]}
    bases = {layer: exact_sae(32, f"mlp_out.{layer}") for layer in chosen}
    modules = write_delphi(tmp_path, model, bases, chosen, TOKENS, {}, CONFIG)
    found = delphi("read", folder=tmp_path / LATENTS, modules=modules, window=WINDOW)
    assert set(found) == {"layers.0.mlp_latent3", "layers.0.mlp_latent40", "layers.2.mlp_latent5"}
    sites = {layer: Site("mlp_out", layer) for layer in chosen}
    acts = model.forward(TOKENS, capture=list(sites.values()), logits_at=None).activations
    for layer, features in chosen.items():
        for feature in features:
            column = bases[layer].encode(acts[sites[layer]].flatten(0, 1))[:, feature].view(TOKENS.shape).clone()
            column[:, 0] = 0
            windows, best = column.view(-1, WINDOW), found[f"layers.{layer}.mlp_latent{feature}"]
            top = int(windows.amax(1).argmax())
            assert best["frequency"] == pytest.approx(float((column > 1e-5).double().mean()))
            assert best["windows"] == int((windows > 1e-5).any(1).sum())
            assert best["max"] == pytest.approx(float(column.max()), rel=2e-3)
            assert best["tokens"] == TOKENS.view(-1, WINDOW)[top].tolist()
            assert best["activations"] == pytest.approx(windows[top].tolist(), rel=2e-3, abs=2e-5)
