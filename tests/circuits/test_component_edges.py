"""Edges between components (float64, tiny random models)."""

import pytest
import torch

from mechstudy.circuits.component_edges import edge_effects
from mechstudy.circuits.components import Components
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.core.errors import MechstudyError
from tests.support.interventions_world import pairs
from tests.support.tiny import ALL, tiny_model

SOME = pairs(3, lengths=(7, 9))
NAMES = NamedPositions.of(SOME)


@pytest.mark.parametrize("family", ALL)
def test_edges_out_of_a_component_add_up_to_its_effect(family):
    """The gradient where a component writes is the sum of those where all later ones read, and the logits'."""
    model = tiny_model(family)
    nodes = Components(model, NAMES)
    edges = edge_effects(model, nodes, SOME, batch_tokens=7)
    expected = predict_effects(model, nodes, SOME, method="eap").effects
    summed_NU = edges.effects_NUV.sum(-1)
    torch.testing.assert_close(summed_NU.T.flatten(), expected, rtol=1e-6, atol=1e-7)  # some keep float32 inside
    assert expected.abs().max() > 1e-3


def test_the_sum_holds_along_the_path_of_inputs():
    model = tiny_model()
    nodes = Components(model, NAMES)
    edges = edge_effects(model, nodes, SOME, method="eap_ig_inputs", replace_by="mean", steps=3)
    expected = predict_effects(model, nodes, SOME, method="eap_ig_inputs", replace_by="mean", steps=3).effects
    torch.testing.assert_close(edges.effects_NUV.sum(-1).T.flatten(), expected, rtol=1e-8, atol=1e-9)


def test_edges_lead_upwards_and_are_listed_by_size():
    model = tiny_model()
    frame = edge_effects(model, Components(model, NAMES), SOME).frame
    pairs_of = set(zip(frame["source"], frame["target"], strict=True))
    assert ("head.0.1", "mlp.0") in pairs_of and ("mlp.0", "head.1.0") in pairs_of and ("mlp.2", "logits") in pairs_of
    assert not {("mlp.0", "head.0.1"), ("head.0.1", "head.0.2"), ("mlp.1", "mlp.1"), ("head.1.0", "mlp.0")} & pairs_of
    top = edge_effects(model, Components(model, NAMES), SOME).top(5)
    assert top["effect"].abs().to_list() == sorted(frame["effect"].abs(), reverse=True)[:5]


def test_other_methods_are_refused():
    model = tiny_model()
    with pytest.raises(MechstudyError, match="edges have no method 'relp'"):
        edge_effects(model, Components(model, NAMES), SOME, method="relp")
