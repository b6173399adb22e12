"""Dictionaries trained before the norm's weight compute the same features from `mlp_in`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mechstudy as ms
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.fitted import all_fitted, fitted
from mechstudy.dictionaries.loading import load_dictionaries
from mechstudy.models.sites import Site
from tests.support.interventions_world import pairs, transcoder
from tests.support.tiny import tiny_model

TOKENS = torch.tensor([[5, 9, 2, 77, 31]])


def of_normalised(d: int, layer: int, skip: bool) -> Dictionary:
    one = transcoder(d, layer, skip=skip)
    one.cfg = replace(one.cfg, site_in=f"blocks.{layer}.ln2.hook_normalized")
    return one


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama"])
def test_features_and_reconstructions_are_those_of_the_normalised_input(family, skip, lazy, tmp_path):
    """LayerNorm with a bias and RMSNorm with 1 + weight, both with random parameters."""
    model = tiny_model(family)
    layer = 1
    norm = model.blocks[layer].norm_mlp
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) / 2)
    theirs = of_normalised(model.d_model, layer, skip)
    given = {layer: theirs}
    if lazy:
        theirs.save(tmp_path / "one")
        given = {layer: load_dictionaries({layer: tmp_path / "one"}, lazy=True)[layer]}
        assert given[layer].cfg.site_in == theirs.cfg.site_in
    mlp_in = model.forward(TOKENS, capture=[Site("mlp_in", layer)]).activations[Site("mlp_in", layer)][0]
    frozen = model.linear_norm(norm, torch.zeros(1, model.d_model).double())
    normalised = (mlp_in - (0 if frozen.bias_D is None else frozen.bias_D)) / frozen.weight_D
    one = fitted(model, given[layer])
    assert one.cfg.site_in == "mlp_in.1" and given[layer].cfg.site_in != "mlp_in.1"
    torch.testing.assert_close(one.encode(mlp_in), theirs.encode(normalised))
    torch.testing.assert_close(one.reconstruct(mlp_in), theirs.reconstruct(normalised))
    pre = theirs.pre_activations(normalised)
    features = torch.tensor([3, 0, 17])
    direct = mlp_in @ one.encoder_rows(features).T + one.b_enc[features]
    torch.testing.assert_close(direct, pre[:, features])
    torch.testing.assert_close(one.decoder_rows(features), theirs.decoder_rows(features))
    one.save(tmp_path / "saved")
    torch.testing.assert_close(Dictionary.load(tmp_path / "saved").encode(mlp_in), theirs.encode(normalised))


def test_graphs_and_interventions_take_them_as_they_are():
    model = tiny_model("llama")
    dicts = {layer: of_normalised(model.d_model, layer, skip=False) for layer in (0, 2)}
    graph = ms.attribute(model, dicts, "abc de", answer="x", wrong_answer="y")
    assert graph.scores()["conservation_residual_max"] < 1e-8
    table = ms.ablate(model, dicts, pairs(2), graph.top(1), to="zero")
    assert len(table.frame) == 2


def test_others_are_left_as_they_are_and_a_norm_without_weight_is_refused():
    model = tiny_model("llama")
    own = {0: transcoder(model.d_model, 0)}
    assert all_fitted(model, own) is own
    with torch.no_grad():
        model.blocks[0].norm_mlp.weight[3] = 0
    with pytest.raises(MechstudyError, match="weight is 0"):
        fitted(model, of_normalised(model.d_model, 0, skip=False))
    with pytest.raises(MechstudyError, match="reads layer 9"):
        fitted(model, of_normalised(model.d_model, 9, skip=False))
