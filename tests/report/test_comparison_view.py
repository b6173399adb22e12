"""Two graphs drawn as one: every node and edge of either, once, with what changed."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import pytest

from mechstudy.circuits import BehaviourFrames, GraphComparison
from mechstudy.report.comparison_view import behaviour_columns, comparison_view, prompt_columns
from tests.support.small_graphs import behaviour_json


def view_of(own, other):
    a, b = BehaviourFrames(own, {}), BehaviourFrames(other, {})
    compared = GraphComparison(a, b)
    return compared, comparison_view(compared, behaviour_columns(a.positions, b.positions), {}, {})


def changes(view, of):
    return Counter(view["compared"]["changes"][i] for i in view[of]["change"])


@pytest.mark.parametrize("seed", range(4))
def test_a_graph_with_itself_is_the_graph_and_nothing_differs(seed):
    own = behaviour_json(seed)
    _, view = view_of(own, deepcopy(own))
    assert changes(view, "nodes") == {"same": len(own["nodes"])}
    assert sorted(view["nodes"]["id"]) == sorted(node["id"] for node in own["nodes"])
    assert set(changes(view, "edges")) == {"same"}
    names = view["nodes"]["id"]
    weights = {(edge["source"], edge["target"]): edge["weight"] for edge in own["edges"] if edge["weight"]}
    drawn = zip(*(view["edges"][field] for field in ("source", "target", "weight")), strict=True)
    assert {(names[s], names[t]): w for s, t, w in drawn} == pytest.approx(weights, rel=1e-6)
    assert view["edges"]["a"] == view["edges"]["b"]


def test_what_one_graph_has_alone_is_gained_or_lost_and_numbers_stand_side_by_side():
    own = behaviour_json(0)
    other = deepcopy(own)
    removed = next(node for node in other["nodes"] if node["type"] == "feature")
    other["nodes"].remove(removed)
    gone = [edge for edge in other["edges"] if removed["id"] in (edge["source"], edge["target"])]
    other["edges"] = [edge for edge in other["edges"] if edge not in gone]
    changed = next(edge for edge in other["edges"] if edge["weight"])
    before = changed["weight"]
    changed["weight"] = -3 * before
    compared, view = view_of(own, other)
    of = {
        name: view["compared"]["changes"][i]
        for name, i in zip(view["nodes"]["id"], view["nodes"]["change"], strict=True)
    }
    assert of[removed["id"]] == "lost"
    assert sum(change == "lost" for change in of.values()) == 1
    assert "gained" not in of.values()
    assert changes(view, "edges") == {"lost": len(gone), "changed": 1, "same": len(other["edges"]) - 1}
    assert view["scores"]["nodes lost"] == 1
    [at] = [i for i, change in enumerate(view["edges"]["change"]) if view["compared"]["changes"][change] == "changed"]
    assert (view["edges"]["a"][at], view["edges"]["b"][at]) == pytest.approx((before, -3 * before), rel=1e-2)
    assert view["edges"]["weight"][at] == pytest.approx(-before, rel=1e-6)
    reverse = GraphComparison(*reversed(compared.graphs))
    turned = comparison_view(reverse, behaviour_columns(*(g.positions for g in reverse.graphs)), {}, {})
    assert changes(turned, "edges")["gained"] == len(gone)


def test_edges_of_opposite_weights_are_still_drawn():
    own = behaviour_json(0)
    other = deepcopy(own)
    edge = next(edge for edge in other["edges"] if edge["weight"])
    edge["weight"] *= -1
    _, view = view_of(own, other)
    assert changes(view, "edges")["changed"] == 1


def test_positions_stand_in_the_order_of_both():
    names = [name for name, _ in behaviour_columns(["a", "b", "last"], ["x", "b", "y", "last", "z"])]
    assert names == ["a", "x", "b", "y", "last", "z"]
    columns = prompt_columns([("0", "The"), ("1", " keys")], [("0", "The"), ("1", " key"), ("2", "\n")])
    assert columns == [("0", "The"), ("1", "·keys | ·key"), ("2", "↵")]
