"""Features and errors as nodes of keep-only runs (float64, tiny random models)."""

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.circuits.components import Components
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.feature_nodes import ErrorAt, FeatureNodes, active_at
from mechstudy.interventions.features import FeatureAt
from mechstudy.interventions.keep_only import NodeSets, keep_only_values
from mechstudy.interventions.node_patching import measure_effects
from tests.support.clt_world import random_clt
from tests.support.interventions_world import pairs, transcoders
from tests.support.tiny import tiny_model

SOME = pairs(4, lengths=(7, 9))
OTHERS = pairs(5, lengths=(7, 8), seed=1)
NAMES = NamedPositions.of([*SOME, *OTHERS])
KINDS = ("zero", "mean", "resample", "corrupted")
MODEL = tiny_model()


def clean_values(corrupted=False):
    tokens = [torch.tensor([p.corrupted_tokens if corrupted else p.clean_tokens]) for p in SOME]
    rows = [contrasts(MODEL.forward(t).logits, [Contrast.of_pair(p)]) for t, p in zip(tokens, SOME, strict=True)]
    return torch.cat(rows)


def values_of(nodes, keep, to="corrupted", **options):
    return keep_only_values(MODEL, SOME, nodes, keep, DonorSource(MODEL, [nodes], to, NAMES, OTHERS), **options)


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("errors", [False, True])
def test_keeping_everything_changes_no_bit(to, errors):
    nodes = FeatureNodes(MODEL, transcoders(MODEL), NAMES, errors=errors)
    keep = torch.ones(2, len(nodes.nodes), dtype=torch.bool)
    keep[1] = False
    together = values_of(nodes, keep, to)
    assert torch.equal(values_of(nodes, keep[:1], to, batch_tokens=1)[0], clean_values())
    torch.testing.assert_close(together[0], clean_values(), rtol=1e-12, atol=1e-12)
    assert (together[1] - clean_values()).abs().min() > 1e-6


@pytest.mark.parametrize("skip", [False, True])
def test_a_replaced_feature_is_one_that_is_set_to_the_donor(skip):
    dicts = transcoders(MODEL, (1,), skip=skip)
    members = active_at(MODEL, dicts, NAMES, SOME)
    some = [f for f in members if f.position == "subject"][:3] + [f for f in members if f.position == "last"][:3]
    nodes = FeatureNodes(MODEL, dicts, NAMES, some)
    zeroed = values_of(nodes, torch.zeros(1, len(some), dtype=torch.bool), "zero")[0]
    for value, p in zip(zeroed, SOME, strict=True):
        clean = clean_run(MODEL, torch.tensor([p.clean_tokens]), [0])
        row = [SetFeature(1, f.feature, p.positions[f.position], 0.0) for f in some]
        logits = edited_run(MODEL, dicts, clean, [row]).logits
        torch.testing.assert_close(value[None], contrasts(logits, [Contrast.of_pair(p)]), rtol=1e-10, atol=1e-10)


def test_features_and_errors_of_a_corrupted_prompt_are_its_mlp_outputs():
    """With all of them replaced, and every head, the run is the corrupted one at the last position."""
    layers = (0, 1, 2)
    features = FeatureNodes(MODEL, transcoders(MODEL, layers), NAMES, errors=True)
    sets = NodeSets([features, Components(MODEL, NAMES, mlps=False)])
    values = values_of(sets, torch.zeros(1, len(sets.nodes), dtype=torch.bool))[0]
    torch.testing.assert_close(values, clean_values(corrupted=True), rtol=1e-9, atol=1e-9)
    cut = torch.ones(1, len(sets.nodes), dtype=torch.bool)
    cut[0, [i for i, node in enumerate(sets.nodes) if isinstance(node, ErrorAt)]] = False
    assert (values_of(sets, cut)[0] - clean_values()).abs().max() > 1e-3
    assert str(ErrorAt(2, "last")) == "error.2@last"


def test_order_and_batch_size_do_not_matter():
    nodes = FeatureNodes(MODEL, transcoders(MODEL), NAMES, errors=True)
    keep = torch.rand(4, len(nodes.nodes), generator=torch.Generator().manual_seed(0)) < 0.5
    for to in KINDS:
        values = values_of(nodes, keep, to)
        torch.testing.assert_close(values_of(nodes, keep.flip(0), to, batch_tokens=20).flip(0), values)


@pytest.mark.parametrize("method", ["eap", "eap_ig_inputs", "eap_ig_activations"])
def test_effects_of_the_last_layers_nodes_are_exact_without_a_final_norm(method):
    model = tiny_model()
    model.final_norm.forward = lambda x: x
    dicts = transcoders(model, (2,))
    nodes = FeatureNodes(model, dicts, NAMES, active_at(model, dicts, NAMES, SOME), errors=True)
    predicted = predict_effects(model, nodes, SOME, method=method, steps=1)
    measured = measure_effects(model, nodes, SOME)
    torch.testing.assert_close(predicted.effects_PN, measured.effects_PN, rtol=1e-8, atol=1e-9)
    assert measured.effects_PN.abs().max() > 1e-2
    assert set(predicted.frame["kind"]) == {"feature", "error"}


def test_the_gap_of_a_path_of_activations_closes():
    nodes = FeatureNodes(MODEL, transcoders(MODEL, (0,)), NAMES, errors=True)
    effects = predict_effects(MODEL, nodes, SOME, method="eap_ig_activations", steps=40)
    assert effects.completeness["gap"].max() < 2e-3


def test_what_cannot_be_a_node_is_refused():
    dicts = transcoders(MODEL)
    with pytest.raises(MechstudyError, match="no position 'verb'"):
        FeatureNodes(MODEL, dicts, NAMES, [FeatureAt(0, 1, "verb")])
    with pytest.raises(MechstudyError, match="layer 1 has no dictionary"):
        FeatureNodes(MODEL, dicts, NAMES, [FeatureAt(1, 1, "last")])
    with pytest.raises(MechstudyError, match="no features"):
        FeatureNodes(MODEL, dicts, NAMES, [])
    with pytest.raises(MechstudyError, match="cross-layer"):
        FeatureNodes(MODEL, random_clt(MODEL).layers(), NAMES)
