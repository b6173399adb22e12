"""Names of components, and positions by name."""

import pytest

from mechstudy.circuits.components import Components, HeadAt, MlpAt, component_at
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.core.errors import MechstudyError
from tests.support.interventions_world import pair, pairs
from tests.support.tiny import tiny_model


def test_names_are_read_as_they_print():
    for node in (HeadAt(23, 3, "last"), MlpAt(12, "subject2"), MlpAt(0, "all")):
        assert component_at(str(node)) == node
    assert component_at("head.1.2") == HeadAt(1, 2, "all")
    for text in ("head.1@last", "f.1.2@last", "mlp.x", ""):
        with pytest.raises(MechstudyError, match="is not a component"):
            component_at(text)


def test_every_token_has_one_name_and_the_first_of_two_counts():
    one = pair(0, 5).model_copy(update={"positions": {"subject": 2, "object": 2, "last": 4}})
    names = NamedPositions.of([one])
    assert names.names == ("first token", "object", "subject", "last", "other")
    assert [names.names[i] for i in names.numbers([one])[0]] == ["first token", "other", "subject", "other", "last"]
    assert NamedPositions(("subject", "last", "other")).numbers([one])[0].tolist() == [2, 2, 0, 2, 1]
    everywhere = one.model_copy(update={"positions": {str(i): i for i in range(5)}})
    assert not {"other", "first token"} & set(NamedPositions.of([everywhere]).names)
    assert NamedPositions.whole().numbers([one]).tolist() == [[0] * 5]


def test_a_position_that_the_nodes_lack_is_refused():
    with pytest.raises(MechstudyError, match="has a position 'subject'"):
        NamedPositions(("last", "other")).numbers([pair(0)])


def test_nodes_are_ordered_by_layer_and_numbered():
    nodes = Components(tiny_model(), NamedPositions(("last", "other")), layers=[2, 0])
    assert [str(node) for node in nodes.nodes[:3]] == ["head.0.0@last", "head.0.0@other", "head.0.1@last"]
    assert str(nodes.nodes[9]) == "mlp.0@other" and len(nodes.nodes) == 2 * 5 * 2
    assert nodes.index(["mlp.0@other", "head.2.0@last"]) == [9, 10]
    with pytest.raises(MechstudyError, match=r"mlp\.1@last is not among"):
        nodes.index(["mlp.1@last"])
    with pytest.raises(MechstudyError, match="no components"):
        Components(tiny_model(), nodes.positions, heads=False, mlps=False)


def test_replacing_by_a_mean_needs_prompts():
    model, some = tiny_model(), pairs(2)
    nodes = Components(model, NamedPositions.of(some))
    with pytest.raises(MechstudyError, match="needs prompts to take activations from"):
        DonorSource(model, [nodes], "mean", nodes.positions)
    elsewhere = [p.model_copy(update={"positions": {"first": 0, "last": 6}}) for p in some[:1]]
    names = NamedPositions.of([*some, *elsewhere])
    with pytest.raises(MechstudyError, match="no discovery prompt has a position 'first'"):
        DonorSource(model, [Components(model, names)], "mean", names, some).donors(elsewhere)
    bare = [p.model_copy(update={"corrupted": "", "corrupted_tokens": ()}) for p in some[:1]]
    with pytest.raises(MechstudyError, match="has no corrupted prompt"):
        DonorSource(model, [nodes], "corrupted", nodes.positions).donors(bare)
