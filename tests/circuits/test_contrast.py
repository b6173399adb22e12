"""Exact identities of predicted effects of replacing nodes (float64, tiny random models)."""

from dataclasses import replace

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.contrast import Replaced
from mechstudy.circuits.custom_targets import Direction
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.live import live_effects
from mechstudy.circuits.named_positions import AlignedPrompt, NamedPositions
from mechstudy.circuits.node_sets import nodes_of
from mechstudy.circuits.node_values import NodeRecorder, node_values
from mechstudy.circuits.targets import AnswerContrast
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.features import NamedActivations
from tests.support.clt_world import random_clt
from tests.support.interventions_world import pair, pairs, transcoders
from tests.support.targets import TARGETS
from tests.support.tiny import ALL, tiny_model

TARGET = AnswerContrast(Contrast((7,), (99,)))
TOKENS = torch.tensor(pair(0).clean_tokens)
KINDS = ("transcoder", "skip", "clt")


def world(family="llama", kind="transcoder", target=TARGET, layers=(0, 2)):
    """A model, its transcoders, and a prompt whose nodes are replaced by those of its corrupted prompt."""
    model = tiny_model(family)
    if kind == "clt":
        whole = random_clt(model)
        dicts = {layer: whole.layer(layer) for layer in layers}
    else:
        dicts = transcoders(model, layers, skip=kind == "skip")
    nodes = nodes_of(model, dicts)
    own = node_values(model, nodes, TOKENS)
    return model, dicts, Replaced(model, nodes, TOKENS, target, own, other_values(model, nodes, own, "corrupted"))


def other_values(model, nodes, own, to, prompt=None):
    """The values that a prompt's nodes are replaced by."""
    source = DonorSource(model, [NodeRecorder(nodes)], to, NamedPositions.whole())
    return own.replaced_by(source.donors([prompt or pair(0)]))


def measured(model, dicts, layer, feature, position, value, final_norm=True):
    """Change of the target where one feature is set, live; before the final norm: of the residual stream's sum."""
    clean = clean_run(model, TOKENS[None], [])
    edited = edited_run(model, dicts, clean, [[SetFeature(layer, feature, position, value)]])
    moved = edited.logits[0] - clean.logits_BV[0]
    return float(moved[7] - moved[99])


ROUTED = ("mixtral",)
KINKED = (
    "nemotron",
    "arcee",
)  # squared ReLU: the midpoint rule's error falls with the square of steps where f'' exists


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ALL)
def test_integrated_effects_add_up_to_the_change_of_replacing_everything(family, kind):
    _, _, replaced = world(family, kind)
    change = replaced.change()
    assert abs(change) > 1e-4
    gaps = [abs(replaced.integrated(n).total - change) for n in (64, 128)]
    if family in ROUTED:  # which experts a token takes jumps on the path, and no gradient knows
        assert gaps[1] < abs(change)
        return
    assert gaps[1] < 1e-3 * abs(change)
    if family not in KINKED:
        assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_first_order_effects_of_single_features_are_slopes_of_live_interventions(kind):
    model, dicts, replaced = world(kind=kind)
    effects = replaced.first_order()
    assert set(effects.layer_M.tolist()) == {0, 2}
    for i in range(0, len(effects.effect_M), 7):
        place = [int(x[i]) for x in (effects.layer_M, effects.feature_M, effects.position_M)]
        own, step = float(effects.own_M[i]), 1e-5 * float(effects.other_M[i] - effects.own_M[i])
        slope = (measured(model, dicts, *place, own + step) - measured(model, dicts, *place, own - step)) / 2e-5
        assert float(effects.effect_M[i]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_first_order_is_exact_where_the_target_is_linear_in_the_features(monkeypatch):
    """A direction, without the final norm: linear in what the last layer's MLP writes at that position."""
    generator = torch.Generator().manual_seed(3)
    direction = Direction(torch.randn(32, generator=generator, dtype=torch.float64))
    model, _, replaced = world(target=direction, layers=(2,))
    monkeypatch.setattr(model.final_norm, "forward", lambda x: x)
    effects = replaced.first_order()
    assert abs(replaced.change()) > 1e-3
    assert effects.total == pytest.approx(replaced.change(), abs=1e-10)
    at_last = effects.position_M == len(TOKENS) - 1
    assert at_last.any() and not effects.effect_M[~at_last].any()
    assert replaced.integrated(1).total == pytest.approx(replaced.change(), abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_replacing_values_by_themselves_has_no_effect(kind):
    _, _, replaced = world(kind=kind)
    same = replace(replaced, other=replaced.own)
    for effects in (same.first_order(), same.integrated(2)):
        assert len(effects.effect_M) == 0
        assert not any(e.any() for e in effects.error_T.values())
    assert abs(same.change()) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_replacing_by_zero_is_minus_the_live_effect(kind):
    model, dicts, replaced = world(kind=kind)
    graph = attribute(model, dicts, TOKENS, AttributionConfig(), answer=7, wrong_answer=99)
    live = live_effects(model, dicts, graph, TARGET)
    effects = replace(replaced, other=other_values(model, replaced.nodes, replaced.own, "zero")).first_order()
    columns = (graph.feature_layer_S, graph.feature_id_S, graph.feature_position_S)
    expected = dict(zip(zip(*(c.tolist() for c in columns), strict=False), (-live).tolist(), strict=False))
    places = zip(effects.layer_M.tolist(), effects.feature_M.tolist(), effects.position_M.tolist(), strict=True)
    found = dict(zip(places, effects.effect_M.tolist(), strict=True))
    assert found.keys() == expected.keys()
    assert all(found[place] == pytest.approx(expected[place], abs=1e-12) for place in found)


def test_features_active_on_the_other_prompt_only_count():
    _, _, replaced = world()
    effects = replaced.first_order()
    only_there = (effects.own_M == 0) & (effects.other_M > 0) & (effects.layer_M == 0)
    assert only_there.any()
    assert effects.effect_M[only_there].all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_writes_changes_by_its_features_and_its_error(kind):
    """One layer's effects of first order, errors included, are the gradient times the change of what is written."""
    _, _, replaced = world(kind=kind)
    one = replaced.of_layer(2)
    effects = one.first_order()
    change_TD = one.other.written_TD(2) - one.own.written_TD(2)
    step = replace(one, other=_between(one, 1e-5)).change() - replace(one, other=_between(one, -1e-5)).change()
    assert change_TD.any()
    assert effects.total == pytest.approx(step / 2e-5, rel=1e-6)


def _between(one, share):
    """Values a share of the way from the prompt's own to the other's."""

    def mixed(own, other):
        return {layer: x + share * (other[layer] - x) for layer, x in own.items()}

    a, b = one.own, one.other
    return a.replaced(
        mixed(a.activation_TF, b.activation_TF), mixed(a.site_TD, b.site_TD), mixed(a.passing_TD, b.passing_TD)
    )


def test_effects_do_not_depend_on_the_order_of_layers():
    _, _, replaced = world()
    turned = replace(replaced, nodes=dict(reversed(replaced.nodes.items())))
    one, other = replaced.integrated(3), turned.integrated(3)
    assert one.total == pytest.approx(other.total, abs=1e-12)
    assert torch.allclose(one.error_T[0], other.error_T[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_contrasted(target):
    _, _, replaced = world(target=target)
    change = replaced.change()
    assert abs(change) > 1e-5
    assert replaced.integrated(64).total == pytest.approx(change, rel=2e-2)


def test_means_are_those_that_interventions_set():
    model, some = tiny_model(), pairs(6)
    dicts = transcoders(model)
    nodes = nodes_of(model, dicts)
    theirs, own = NamedActivations(model, dicts, some), node_values(model, nodes, TOKENS)
    names = ["other", "other", "subject", "answer tokens", "other", "other", "last"]
    prompt = AlignedPrompt("p", tuple(TOKENS.tolist()), tuple(names))
    values, again = (
        own.replaced_by(
            DonorSource(
                model, [NodeRecorder(nodes)], "mean", NamedPositions.of(some), some, batch_tokens=batch_tokens
            ).donors([prompt])
        )
        for batch_tokens in (4096, 1)
    )
    for layer in dicts:
        for t, name in enumerate(names):
            expected = own.activation_TF[layer][t] if t == 3 else theirs.means(layer, name)
            applies = bool(own.applies_T[layer][t])
            assert applies == (t > 0)
            found = values.activation_TF[layer][t]
            assert torch.allclose(found, expected * applies, rtol=0, atol=1e-12)
        assert torch.equal(values.site_TD[layer][3], own.site_TD[layer][3])
        assert torch.allclose(values.written_TD(layer), again.written_TD(layer), rtol=0, atol=1e-12)


def test_places_that_the_other_prompt_lacks_keep_their_values():
    model, _, replaced = world()
    prompt = AlignedPrompt.of_pair(pair(0))
    lacking = replace(prompt, corrupted_at=(0, 1, 2, None, 4, 5, 6))
    values = other_values(model, replaced.nodes, replaced.own, "corrupted", lacking)
    effects = replace(replaced, other=values).first_order()
    assert 3 not in effects.position_M.tolist()
    assert all(not e[3] for e in effects.error_T.values())
    assert 4 in effects.position_M.tolist()
