"""Feature pages of exact dictionaries in a tiny model."""

from __future__ import annotations

import pytest
import torch

from mechstudy.dictionaries.neurons import Neurons
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


def activations(model, site, feature):
    """[6, 9] of a feature; first positions are not counted."""
    acts = model.forward(TOKENS, capture=[site], logits_at=None).activations[site][..., feature].clone()
    acts[:, 0] = 0
    return acts


def bins_of(acts, width):
    """How many activations are in each bin, up to the last that has one."""
    return torch.bincount((acts[acts > 0] / width).long()).tolist()


def test_a_page_has_the_histogram_of_all_rows_and_examples_of_intervals(model):
    [page] = pages(model, {(0, 3): {}})
    acts = activations(model, Site("mlp_out", 0), 3).relu()
    histogram, intervals = page["histogram"], page["intervals"]
    assert histogram["positive"] == bins_of(acts, histogram["bin_width"]) and histogram["negative"] == []
    assert sum(histogram["positive"]) == pytest.approx(page["frequency"] * 6 * 8)
    assert sum(one["count"] for one in intervals) == sum(histogram["positive"]) and len(intervals) == 5
    assert intervals[0]["high"] > page["max_activation"] >= intervals[0]["low"] > intervals[-1]["low"] == 0
    for one in intervals:
        peaks = [example["activations"][example["peak"]] for example in one["examples"]]
        assert all(one["low"] - 1e-3 <= peak <= one["high"] + 1e-3 for peak in peaks)
        assert (len(peaks) > 0) == (one["count"] > 0)
        for example, peak in zip(one["examples"], peaks, strict=True):
            assert torch.isclose(acts[example["document"]], torch.tensor(peak).double(), rtol=2e-3, atol=2e-4).any()


def test_neurons_have_both_sides_of_zero(model):
    site = Site("mlp_act", 1)
    [page] = feature_pages(model, {1: Neurons(model, 1)}, {(1, 5): {}}, TOKENS, n_examples=3, window=5, top_logits=4)
    acts = activations(model, site, 5)
    histogram = page["histogram"]
    assert histogram["positive"] == bins_of(acts, histogram["bin_width"])
    assert histogram["negative"] == bins_of(-acts, histogram["bin_width"]) != []
    below = [one for one in page["intervals"] if one["high"] <= 0]
    assert sum(one["count"] for one in below) == int((acts < 0).sum())
    peaks = [example["activations"][example["peak"]] for one in below for example in one["examples"]]
    assert peaks and max(peaks) <= 0


def test_batches_do_not_change_pages(model):
    graphs = {(0, 3): {}, (0, 40): {}, (2, 5): {}}
    assert pages(model, graphs, batch_tokens=9) == pages(model, graphs, batch_tokens=4096)


def test_graphs_without_features_have_no_pages(model):
    assert pages(model, {}) == []
