"""Features and errors of every basis as nodes of keep-only runs (float64, tiny random models)."""

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.circuits.components import Components
from mechstudy.circuits.donors import DonorSource, SiteValues
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.circuits.node_sets import nodes_of
from mechstudy.circuits.node_values import NodeRecorder
from mechstudy.circuits.question import Question
from mechstudy.circuits.replacements import Replacements
from mechstudy.circuits.universe import NodeSets
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.feature_nodes import ErrorAt, FeatureNodes, active_at
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.interventions.node_patching import measure_effects
from mechstudy.models.sites import Site
from tests.support import bases_world
from tests.support.clt_world import random_clt
from tests.support.interventions_world import pairs, transcoder, transcoders
from tests.support.thorough import few
from tests.support.tiny import tiny_model

SOME = pairs(4, lengths=(7, 9))
OTHERS = pairs(5, lengths=(7, 8), seed=1)
NAMES = NamedPositions.of([*SOME, *OTHERS])
KINDS = ("zero", "mean", "resample", "corrupted")
BASES = (*bases_world.KINDS, "clt", "clt of two layers")
MODEL = tiny_model()


def bases(kind, model=MODEL, relu=False):
    layers = random_clt(model, relu=relu).layers() if "clt" in kind else bases_world.bases(model, kind)
    return {layer: layers[layer] for layer in (0, 2)} if kind == "clt of two layers" else layers


def clean_values(corrupted=False):
    tokens = [torch.tensor([p.corrupted_tokens if corrupted else p.clean_tokens]) for p in SOME]
    rows = [contrasts(MODEL.forward(t).logits, [Contrast.of_pair(p)]) for t, p in zip(tokens, SOME, strict=True)]
    return torch.cat(rows)


def values_of(nodes, keep, to="corrupted", **options):
    return keep_only_values(MODEL, SOME, nodes, keep, DonorSource(MODEL, [nodes], to, NAMES, OTHERS), **options)


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", few(BASES, 2))
def test_keeping_everything_changes_no_bit(kind, to):
    for errors in (False, True):
        nodes = FeatureNodes(MODEL, bases(kind), NAMES, errors=errors)
        keep = torch.ones(2, len(nodes.nodes), dtype=torch.bool)
        keep[1] = False
        together = values_of(nodes, keep, to)
        assert torch.equal(values_of(nodes, keep[:1], to, batch_tokens=1)[0], clean_values())
        torch.testing.assert_close(together[0], clean_values(), rtol=1e-12, atol=1e-12)
        assert (together[1] - clean_values()).abs().min() > 1e-6


@pytest.mark.parametrize("kind", few(BASES, 2))
def test_circuits_that_share_a_prefix_do_what_each_does_alone(kind):
    """Several start at the first token that can differ; one alone runs from the first token on."""
    nodes = FeatureNodes(MODEL, bases(kind), NAMES, errors=True)
    keep = torch.rand(4, len(nodes.nodes), generator=torch.Generator().manual_seed(0)) < 0.5
    together = values_of(nodes, torch.cat([keep, keep[:1]]))
    alone = torch.cat([values_of(nodes, keep[i : i + 1]) for i in range(len(keep))])
    torch.testing.assert_close(together[:4], alone, rtol=1e-11, atol=1e-12)
    assert torch.equal(together[0], together[4])
    assert alone.std(0).min() > 1e-6


@pytest.mark.parametrize("to", ["zero", "mean"])
@pytest.mark.parametrize("kind", few(BASES, 2))
def test_a_replaced_feature_is_one_that_is_set(kind, to):
    """The engine of interventions sets the same features to the same values, and later layers respond alike."""
    basis = bases(kind)
    means = NamedActivations(MODEL, basis, OTHERS)

    def value_of(f):
        return 0.0 if to == "zero" else float(means.means(f.layer, f.position)[f.feature])

    members = active_at(MODEL, basis, NAMES, SOME)
    some = [f for layer in basis for name in NAMES.names
            for f in [f for f in members if (f.layer, f.position) == (layer, name)][:2]]  # fmt: skip
    some = [f for f in some if f.position != "first token"]
    assert {f.position for f in some} == {"subject", "last", "other"}
    nodes = FeatureNodes(MODEL, basis, NAMES, some)
    found = values_of(nodes, torch.zeros(1, len(some), dtype=torch.bool), to)[0]
    for value, p in zip(found, SOME, strict=True):
        clean = clean_run(MODEL, torch.tensor([p.clean_tokens]), [0])
        [names] = NAMES.numbers([p]).tolist()
        row = [
            SetFeature(f.layer, f.feature, t, value_of(f))
            for f in some
            for t, n in enumerate(names)
            if NAMES.names[n] == f.position
        ]
        logits = edited_run(MODEL, basis, clean, [row]).logits
        torch.testing.assert_close(value[None], contrasts(logits, [Contrast.of_pair(p)]), rtol=1e-10, atol=1e-10)
    assert (found - clean_values()).abs().max() > 1e-4


@pytest.mark.parametrize("to", ["mean", "corrupted"])
@pytest.mark.parametrize(
    "kind", [kind for kind in BASES if kind not in ("skip transcoders", "mixed", "clt of two layers")]
)
def test_replacing_all_features_and_errors_sets_the_site_to_the_donors(kind, to):
    """Against hooks that write what the donors' sites hold."""
    basis = bases(kind)
    nodes = FeatureNodes(MODEL, basis, NAMES, errors=True)
    sites = list(nodes.slices)
    source = DonorSource(MODEL, [SiteValues(tuple(sites))], to, NAMES, OTHERS)
    values = values_of(nodes, torch.zeros(1, len(nodes.nodes), dtype=torch.bool), to)[0]
    for value, p in zip(values, SOME, strict=True):
        donors = source.donors([p])
        edits = {site: (lambda _, x=donors.values[site]: x) for site in sites}
        logits = MODEL.forward(torch.tensor([p.clean_tokens]), edits=edits).logits
        torch.testing.assert_close(value[None], contrasts(logits, [Contrast.of_pair(p)]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bound", ["max_input_norm", "max_output_norm"])
def test_where_features_do_not_apply_the_error_is_all_that_changes(bound):
    """With sinks in the prompts or in their donors, all nodes of the donor still are what its MLP wrote."""
    read, out = Site("mlp_in", 1), Site("mlp_out", 1)
    at = MODEL.forward(torch.tensor([SOME[0].clean_tokens]), capture=[read, out]).activations
    limit = float(at[read if "input" in bound else out][0, 1:].norm(dim=-1).median())
    basis = {1: transcoder(MODEL.d_model, 1, **{bound: limit})}
    recorded = DonorSource(MODEL, [NodeRecorder(nodes_of(MODEL, basis))], "corrupted", NAMES)
    applies = torch.cat([recorded.donors([p]).values["applies", 1].flatten() for p in SOME])
    assert 0 < applies.sum() < len(applies) - len(SOME)
    nodes = FeatureNodes(MODEL, basis, NAMES, errors=True)
    values = values_of(nodes, torch.zeros(1, len(nodes.nodes), dtype=torch.bool))[0]
    source = DonorSource(MODEL, [SiteValues((out,))], "corrupted", NAMES)
    for value, p in zip(values, SOME, strict=True):
        there = source.donors([p]).values[out]
        logits = MODEL.forward(torch.tensor([p.clean_tokens]), edits={out: lambda _, there=there: there}).logits
        torch.testing.assert_close(value[None], contrasts(logits, [Contrast.of_pair(p)]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("to", ["zero", "mean", "corrupted"])
@pytest.mark.parametrize("kind", few(BASES, 2))
def test_predicted_effects_are_those_of_graphs(kind, to):
    """Two implementations, one through shares and one through inner products, give features and errors one effect."""
    basis = bases(kind)
    of_layers = nodes_of(MODEL, basis)
    nodes = FeatureNodes(MODEL, basis, NAMES, errors=True)
    effects = predict_effects(MODEL, nodes, SOME, method="eap", replace_by=to, discovery=OTHERS)
    source = DonorSource(MODEL, [NodeRecorder(of_layers)], to, NAMES, OTHERS)
    predicted = Replacements(MODEL, of_layers, source)
    number = {str(node): i for i, node in enumerate(nodes.nodes)}
    for p, effects_N in zip(SOME, effects.effects_PN, strict=True):
        one = predicted.effects(Question.of_pair(p))
        names = [NAMES.names[n] for n in NAMES.numbers([p])[0].tolist()]
        expected = torch.zeros(len(number), dtype=torch.float64)
        columns = (one.layer_M, one.feature_M, one.position_M, one.effect_M)
        for layer, feature, at, effect in zip(*(c.tolist() for c in columns), strict=True):
            expected[number[str(FeatureAt(layer, feature, names[at]))]] += effect
        for layer, error_T in one.error_T.items():
            for at, effect in enumerate(error_T.tolist()):
                expected[number[str(ErrorAt(layer, names[at]))]] += effect
        torch.testing.assert_close(effects_N, expected, rtol=1e-9, atol=1e-11)
        assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("to", ["mean", "corrupted"])
@pytest.mark.parametrize("kind", few(BASES, 2))
def test_effects_of_all_nodes_divide_what_keep_only_runs_measure(kind, to):
    """A feature that jumps is made up for by the error of its own layer, but not at a later layer without one."""
    basis = bases(kind, relu=kind == "clt of two layers")
    nodes = NodeSets([FeatureNodes(MODEL, basis, NAMES, errors=True), Components(MODEL, NAMES, mlps=False)])
    options = {"method": "ig_nodes", "replace_by": to, "discovery": OTHERS}
    few, many = (predict_effects(MODEL, nodes, SOME, steps=steps, **options) for steps in (5, 20))
    keep = torch.tensor([[False], [True]]).expand(2, len(nodes.nodes))
    none, every = values_of(nodes, keep, to)
    gaps = [(effects.effects_PN.sum(1) - (none - every)).abs().sum() for effects in (few, many)]
    assert (none - every).abs().sum() > 0.1
    assert gaps[1] < 0.01 * (none - every).abs().sum() or gaps[1] < 0.2 * gaps[0]
    assert many.completeness["change"][0] == pytest.approx(float((none - every).mean()), rel=1e-9)
    again = predict_effects(MODEL, nodes, SOME, steps=2, checkpointing="on", **options)
    plain = predict_effects(MODEL, nodes, SOME, steps=2, checkpointing="off", **options)
    torch.testing.assert_close(again.effects_PN, plain.effects_PN, rtol=1e-10, atol=1e-12)


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
    with pytest.raises(MechstudyError, match="nodes of features need a transcoder"):
        FeatureNodes(MODEL, {1: dicts[0]}, NAMES)
