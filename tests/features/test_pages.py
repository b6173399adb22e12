"""Feature pages of exact dictionaries in a tiny model."""

from __future__ import annotations

import pytest
import torch

from mechstudy.features.pages import feature_pages
from mechstudy.models.sites import Site
from tests.support.dictionary_worlds import exact_sae
from tests.support.tiny import tiny_model

TOKENS = torch.randint(1, 250, (6, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def pages(model, graphs, **options):
    dictionaries = {layer: exact_sae(32, f"mlp_out.{layer}") for layer in (0, 2)}
    settings = {"n_examples": 3, "window": 5, "top_logits": 4} | options
    return feature_pages(model, dictionaries, graphs, TOKENS, **settings)


def test_a_page_shows_where_its_feature_is_most_active(model):
    [page, other] = pages(model, {(2, 5): {"b": 2}, (0, 3): {"a": 1}})
    assert (page["layer"], page["feature"], page["graphs"]) == (0, 3, {"a": 1})
    assert (other["layer"], other["feature"], other["graphs"]) == (2, 5, {"b": 2})
    site = Site("mlp_out", 0)
    acts = model.forward(TOKENS, capture=[site], logits_at=None).activations[site][..., 3].relu()
    acts[:, 0] = 0
    active = acts > 0
    assert page["frequency"] == pytest.approx(float(active.sum()) / (6 * 8))
    assert page["mean_activation"] == pytest.approx(float(acts[active].mean()), rel=1e-5)
    assert page["max_activation"] == pytest.approx(float(acts.max()), rel=1e-5)
    best = page["examples"][0]
    assert best["document"] == int(acts.amax(1).argmax()) and len(best["tokens"]) == len(best["activations"]) == 5
    assert best["activations"][best["peak"]] == pytest.approx(float(acts.max()), rel=1e-3)
    assert len(page["examples"]) == 3 and len(page["top_logits"]) == len(page["bottom_logits"]) == 4
    assert page["top_logits"][0]["value"] > page["bottom_logits"][0]["value"]


def test_batches_do_not_change_pages(model):
    graphs = {(0, 3): {}, (0, 40): {}, (2, 5): {}}
    assert pages(model, graphs, batch_tokens=9) == pages(model, graphs, batch_tokens=4096)


def test_graphs_without_features_have_no_pages(model):
    assert pages(model, {}) == []
