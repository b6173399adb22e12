"""The picture of a verdict's circuit, and its nodes in words."""

import pytest

from mechstudy.report.members_picture import in_words, members_of, members_svg, positions_in_order
from mechstudy.report.pictures import INLINE

ROWS = [
    {"node": "f.2.17@last", "effect": -0.5},
    {"node": "head.3.1@last", "effect": 1.0},
    {"node": "mlp.0@subject", "effect": -2.0},
    {"node": "mlp.2@subject", "effect": -0.25},
    {"node": "error.1@<b>a</b>", "effect": -0.25},
]
PAIRS = [{"positions": {"subject": 3, "last": 8}}, {"positions": {"subject": 4, "last": 6, "<b>a</b>": 5}}]


def test_members_are_read_from_their_names_the_strongest_first():
    members = members_of([*ROWS, {"node": "something else", "effect": 9.0}])
    assert [m.short for m in members] == ["MLP 0", "head 3.1", "feature 2.17", "MLP 2", "error 1"]
    assert [m.position for m in members] == ["subject", "last", "last", "subject", "<b>a</b>"]


def test_positions_are_in_the_order_of_the_prompts():
    rows = [*ROWS, {"node": "mlp.1@other", "effect": 1.0}, {"node": "mlp.1@first token", "effect": 1.0}]
    rows.append({"node": "mlp.1@nowhere", "effect": 1.0})
    expected = ["first token", "other", "subject", "<b>a</b>", "last", "nowhere"]
    assert positions_in_order(members_of(rows), PAIRS) == expected


def test_words_count_nodes_and_share_effects():
    members = members_of(ROWS)
    subject, named, last = in_words(members, positions_in_order(members, PAIRS))
    assert (subject["n"], subject["share"]) == (2, pytest.approx(2.25 / 4))
    assert subject["nodes"] == "2 MLPs (layers 0 to 2)" and subject["strongest"] == "MLP 0, MLP 2"
    assert named["nodes"] == "1 error (layer 1)"
    assert last["nodes"] == "1 head (layer 3), 1 feature (layer 2)" and last["strongest"] == "head 3.1, feature 2.17"


def test_a_mark_for_every_node_and_nothing_unescaped():
    members = members_of(ROWS)
    svg = members_svg(members, positions_in_order(members, PAIRS), 4, {"subject": " <i>key</i>"}, INLINE)
    assert svg.count("<title>") == len(ROWS)
    assert (svg.count("<circle"), svg.count("<rect"), svg.count("<path")) == (1, 2, 2)
    assert "<b>" not in svg and "<i>" not in svg and "&lt;i&gt;" in svg
    assert "replacing it changes the contrast by -2.000" in svg
