"""Files of delphi, read as its loader reads them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.neurons import Neurons
from mechstudy.features.delphi import module_name, write_delphi
from mechstudy.models.families import FAMILIES
from mechstudy.models.sites import Site
from tests.support.dictionary_worlds import exact_sae
from tests.support.tiny import tiny_model

TOKENS = torch.randint(1, 250, (6, 9), generator=torch.Generator().manual_seed(0))
CONFIG = {"model_name": "acme/tiny", "dataset_repo": "text:x.txt", "dataset_split": "train", "dataset_name": "",
          "dataset_column": "text", "batch_size": 4}  # fmt: skip
# Fields of its CacheConfig, and the model's name, which its loader of tokenizers reads.
FIELDS = {"dataset_repo": str, "dataset_split": str, "dataset_name": str, "dataset_column": str, "batch_size": int,
          "cache_ctx_len": int, "n_tokens": int, "n_splits": int, "model_name": str}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def written(model, tmp_path):
    bases = {0: exact_sae(32, "mlp_out.0"), 2: Neurons(model, 2)}
    said = {(0, 3): "on «x», «ü»"}
    names = write_delphi(tmp_path, model, bases, {0: [3, 40], 2: [5]}, TOKENS, said, CONFIG, batch_tokens=18)
    assert names == ["layers.0.mlp", "mlp_act.2"]
    return tmp_path


def latents(module):
    """(latent, document, position) -> activation, and tokens, of a module's folder: a file for each range."""
    found = {}
    for file in module.glob("*.safetensors"):
        first, last = map(int, file.stem.split("_"))
        data = load_file(file)
        assert data["activations"].dtype == np.float16 and data["locations"].dtype in (np.uint16, np.uint32)
        assert data["locations"].shape == (len(data["activations"]), 3) and data["tokens"].dtype == np.int64
        for (document, position, latent), value in zip(data["locations"].tolist(), data["activations"], strict=True):
            assert first <= latent + first <= last
            found[latent + first, document, position] = float(value)
    return found, data["tokens"]


def activations(model, site):
    acts = model.forward(TOKENS, capture=[site], logits_at=None).activations[site].clone()
    acts[:, 0] = 0
    return acts


def test_latents_are_all_activations_of_the_chosen_features(model, written):
    found, tokens = latents(written / "latents" / "layers.0.mlp")
    assert (tokens == TOKENS.numpy()).all()
    acts = activations(model, Site("mlp_out", 0))
    expected = {
        (feature, document, position): pytest.approx(float(column[document, position]), rel=2e-3)
        for feature, column in ((3, acts[..., 3]), (40, -acts[..., 8]))
        for document, position in (column > 1e-5).nonzero().tolist()
    }
    assert found == expected and {latent for latent, _, _ in found} == {3, 40}


def test_neurons_have_activations_below_zero_too(model, written):
    found, _ = latents(written / "latents" / "mlp_act.2")
    acts = activations(model, Site("mlp_act", 2))[..., 5]
    assert len(found) == int((acts.abs() > 1e-5).sum()) and min(found.values()) < 0
    assert (written / "latents" / "mlp_act.2" / f"0_{Neurons(model, 2).cfg.d_sae - 1}.safetensors").exists()


def test_latents_are_in_the_order_of_documents(written):
    """delphi groups consecutive windows, and would split a window whose activations are not side by side."""
    for file in written.rglob("*.safetensors"):
        locations = load_file(file)["locations"].astype(np.int64)
        for latent in np.unique(locations[:, 2]):
            at = locations[locations[:, 2] == latent]
            assert (np.diff(at[:, 0] * TOKENS.shape[1] + at[:, 1]) > 0).all()


def test_each_module_has_a_config_with_every_field(written):
    for module in (written / "latents").iterdir():
        config = json.loads((module / "config.json").read_text())
        assert {name: type(value) for name, value in config.items()} == FIELDS
        assert (config["cache_ctx_len"], config["n_tokens"]) == (9, 54)


def test_an_explanation_is_a_json_string_named_by_module_and_latent(written):
    [file] = (written / "explanations").iterdir()
    assert file.name == "layers.0.mlp_latent3.txt"
    assert json.loads(file.read_bytes()) == "on «x», «ü»"


def test_modules_have_the_models_own_names():
    families = {family.name: family for family in FAMILIES}
    gpt2 = next(family for family in families.values() if "gpt2" in family.model_types)
    gemma2 = next(family for family in families.values() if "gemma2" in family.model_types)
    assert module_name("mlp_out.3", gpt2) == "h.3.mlp" and module_name("resid_post.3", gpt2) == "h.3"
    assert module_name("mlp_out.3", gemma2) == "layers.3.post_feedforward_layernorm"
    assert module_name("mlp_act.3", gemma2) == "mlp_act.3"


def test_two_layers_of_one_module_are_refused(model, tmp_path):
    bases = {0: exact_sae(32, "mlp_out.0"), 1: exact_sae(32, "mlp_out.0")}
    with pytest.raises(MechstudyError, match="one module"):
        write_delphi(tmp_path, model, bases, {0: [3], 1: [3]}, TOKENS, {}, CONFIG)
