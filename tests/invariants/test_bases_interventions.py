"""Interventions on SAEs and neurons: exact identities (float64, tiny random models)."""

from __future__ import annotations

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.contrast import Replaced
from mechstudy.circuits.live import explained_gradients, live_effects, sites_written
from mechstudy.circuits.node_sets import nodes_of
from mechstudy.circuits.node_values import node_values
from mechstudy.circuits.targets import AnswerContrast
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.interventions.steering import feature_direction, steer
from mechstudy.models.sites import Site
from tests.support.bases_world import KINDS, SAES, bases
from tests.support.interventions_world import pairs
from tests.support.tiny import tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])
EXPLAINED = AnswerContrast(Contrast((7,), (99,)))
NEW = (*SAES, "neurons", "mixed", "sae and neurons")


def run(model, basis, *edits):
    clean = clean_run(model, TOKENS[None], range(model.n_layers))
    return clean.logits_BV[0], edited_run(model, basis, clean, [edits]).logits[0]


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_setting_features_to_what_they_are_changes_nothing(family, kind):
    model = tiny_model(family)
    basis = bases(model, kind)
    shams = [SetFeature(layer, feature, 4, None) for layer in basis for feature in (0, 3, 9)]
    clean, same = run(model, basis, *shams)
    assert torch.equal(clean, same)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_a_neuron_is_set_in_mlp_act(family):
    model = tiny_model(family)

    def zeroed(x):
        x = x.clone()
        x[0, 4, 13] = 0.25
        return x

    expected = model.forward(TOKENS[None], edits={Site("mlp_act", 1): zeroed}).logits[0]
    _, edited = run(model, bases(model, "neurons"), SetFeature(1, 13, 4, 0.25))
    assert torch.allclose(edited, expected, atol=1e-12)


@pytest.mark.parametrize("kind", SAES)
def test_an_sae_feature_moves_its_site_by_its_decoder_row(kind):
    model = tiny_model()
    [sae, *_] = [basis for _, basis in sorted(bases(model, kind).items())]
    site = Site.parse(sae.cfg.site_in)
    x = model.forward(TOKENS[None], capture=[site]).activations[site][0]
    feature = int(sae.encode(x[4]).argmax())
    change = 0.5 - sae.encode(x[4])[feature]

    def moved(y):
        y = y.clone()
        y[0, 4] += change * sae.W_dec[feature]
        return y

    expected = model.forward(TOKENS[None], edits={site: moved}).logits[0]
    _, edited = run(model, {0: sae}, SetFeature(0, feature, 4, 0.5))
    assert torch.allclose(edited, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_live_effects_are_the_slopes_of_the_live_model(family, kind):
    model = tiny_model(family)
    basis = bases(model, kind)
    graph = attribute(model, basis, TOKENS, AttributionConfig(max_features=20), answer=7, wrong_answer=99)
    gradients = explained_gradients(model, TOKENS, EXPLAINED, sites_written(basis))
    effects = live_effects(model, basis, graph, EXPLAINED, gradients=gradients)
    columns = [int(effects[s].abs().argmax()) + s.start for s in graph.index.feature_slices if s.stop > s.start]
    for column in columns:
        layer, feature = int(graph.feature_layer_S[column]), int(graph.feature_id_S[column])
        position, value = int(graph.feature_position_S[column]), float(graph.activation_S[column])
        step = 1e-5
        logits = [run(model, basis, SetFeature(layer, feature, position, value * (1 + s)))[1] for s in (-step, step)]
        slope = float((logits[1] - logits[0])[7] - (logits[1] - logits[0])[99]) / (2 * step)
        assert float(effects[column]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_effects_add_up_to_replacing_every_node(kind):
    model = tiny_model()
    nodes = nodes_of(model, bases(model, kind))
    other = node_values(model, nodes, torch.tensor([5, 17, 88, 33, 9, 120, 64]))
    own = node_values(model, nodes, TOKENS)
    replaced = Replaced(model, nodes, TOKENS, EXPLAINED, own, other)
    gaps = [abs(replaced.integrated(steps).total - replaced.change()) for steps in (8, 32)]
    size = abs(replaced.change())
    assert size > 1e-3 and gaps[1] < 1e-3 * size and gaps[1] < gaps[0]


@pytest.mark.parametrize("kind", NEW)
def test_steering_adds_what_features_write_at_their_mean(kind):
    model = tiny_model()
    basis, some = bases(model, kind), pairs(4)
    discovery = NamedActivations(model, basis, some)
    members = [FeatureAt(layer, 3, "last") for layer in sorted(basis)]
    direction = feature_direction(members, discovery, basis)
    assert sorted(direction) == sorted(sites_written(basis))
    edits = steer(direction, 2.0, some[0])
    assert {edit.site for edit in edits} == set(direction)
    for member in members:
        [site] = [site for site in direction if site.layer == member.layer]
        mean = discovery.means(member.layer, "last")[3]
        assert torch.allclose(direction[site], mean * basis[member.layer].writes([3])[0][0], atol=1e-12)
