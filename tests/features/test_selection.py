"""Which features of graphs get a page."""

from __future__ import annotations

from mechstudy.features.selection import features_in_graphs


def node(layer: int, feature: int, position: str, influence: float, total_effect: float, frequency: float = 1.0):
    return {
        "id": f"{layer}/{feature}@{position}", "type": "feature", "layer": layer, "feature": feature,
        "position": position, "influence": influence, "total_effect": total_effect, "frequency": frequency,
    }  # fmt: skip


GRAPH = {
    "nodes": [
        {"id": "token", "type": "token", "influence": 9.0, "total_effect": 9.0},
        node(1, 7, "last", 0.5, 0.1, 0.25),
        node(1, 7, "subject", 0.2, 0.3, 0.75),
        node(2, 8, "last", 0.1, -2.0),
        node(3, 9, "last", 0.05, 0.01),
    ]
}


def test_features_are_ranked_by_influence_or_absolute_effect():
    assert list(features_in_graphs({"a": GRAPH}, 2)) == [(1, 7), (2, 8)]
    assert set(features_in_graphs({"a": GRAPH}, 9)) == {(1, 7), (2, 8), (3, 9)}


def test_positions_of_a_feature_are_summed():
    entry = features_in_graphs({"a": GRAPH}, 1)[1, 7]["a"]
    assert entry == {"influence": 0.7, "frequency": 0.75, "total_effect": 0.4, "positions": ["last", "subject"]}


def test_a_feature_of_two_behaviours_has_an_entry_for_each():
    chosen = features_in_graphs({"a": GRAPH, "b": {"nodes": [node(2, 8, "last", 1.0, 1.0)]}}, 2)
    assert set(chosen[2, 8]) == {"a", "b"} and set(chosen[1, 7]) == {"a"}


def test_features_of_large_effects_of_replacement_are_described_too():
    nodes = [node(1, i, "last", 1.0 / (i + 1), 0.0) | {"contrast_effect": 0.0} for i in range(3)]
    nodes.append(node(2, 7, "last", 0.0, 0.0) | {"contrast_effect": -5.0})
    assert set(features_in_graphs({"b": {"nodes": nodes}}, 2)) == {(1, 0), (2, 7)}
