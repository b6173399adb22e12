"""The still picture of a circuit shows what it says it shows."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from mechstudy.report.figures import LIGHT
from mechstudy.report.pictures import INLINE, PER_CELL_BOXES, circuit_svg
from mechstudy.report.viewer import aggregate_view
from tests.support.report_graphs import HOSTILE


def view(n_features: int, label: str = ""):
    nodes = [
        {"id": f"f.3.{i}@end", "type": "feature", "layer": 3, "feature": i, "position": "end", "influence": 1 / (i + 1),
         "label": label} for i in range(n_features)
    ]  # fmt: skip
    nodes.append(
        {"id": "logit", "type": "logit", "layer": None, "feature": None, "position": "last", "label": "target"}
    )
    edges = [{"source": "f.3.0@end", "target": "logit", "weight": -1.0}]
    return aggregate_view({"positions": ["end"], "target": "logit_difference", "nodes": nodes, "edges": edges}, {})


def test_a_crowded_cell_says_how_many_features_it_leaves_out() -> None:
    svg = circuit_svg(view(PER_CELL_BOXES + 5), boxes=True, theme=LIGHT)
    assert "+ 5 more" in svg
    assert "more" not in circuit_svg(view(PER_CELL_BOXES), boxes=True, theme=LIGHT)


def test_a_lowering_edge_is_dashed_and_not_only_coloured() -> None:
    paths = [e for e in ET.fromstring(circuit_svg(view(2), boxes=True, theme=LIGHT)).iter() if e.tag.endswith("path")]
    assert [p.get("stroke") for p in paths] == [LIGHT["@neg"]]
    assert paths[0].get("stroke-dasharray")


def test_an_edge_through_a_pattern_is_dotted_in_a_colour_of_its_own() -> None:
    drawn = view(2)
    drawn["edges"]["qk"] = [1]
    [path] = [e for e in ET.fromstring(circuit_svg(drawn, boxes=True, theme=LIGHT)).iter() if e.tag.endswith("path")]
    assert path.get("stroke") == LIGHT["@pattern"] and path.get("stroke-dasharray") == "1.5 3"


def test_a_hostile_label_stays_text() -> None:
    for boxes in (True, False):
        svg = circuit_svg(view(2, HOSTILE), boxes=boxes, theme=INLINE)
        assert not [e for e in ET.fromstring(svg).iter() if e.tag.endswith(("script", "img"))]


def test_the_inline_picture_takes_its_colours_from_the_page() -> None:
    assert "var(--effect)" in circuit_svg(view(2), boxes=False, theme=INLINE)


def test_an_empty_graph_still_draws() -> None:
    empty = aggregate_view({"positions": [], "nodes": [], "edges": []}, {})
    ET.fromstring(circuit_svg(empty, boxes=False, theme=INLINE))
