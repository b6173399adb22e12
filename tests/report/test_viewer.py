"""Attribution graphs as the viewer reads them."""

# ruff: noqa: RUF001 - the typography of the labels is under test

from __future__ import annotations

import pytest

from mechstudy.report.viewer import TYPES, aggregate_view, feature_record, is_cumulative, prompt_view
from tests.support.report_graphs import HOSTILE


def node(node_id: str, kind: str, layer: str, position: int, influence: float | None = None) -> dict:
    return {"node_id": node_id, "feature_type": kind, "layer": layer, "ctx_idx": position, "influence": influence,
            "feature": 9999, "clerp": "", "token_prob": 0.5}  # fmt: skip


def graph(**influence: float) -> dict:
    return {
        "metadata": {"slug": "g", "prompt_tokens": ["a", HOSTILE]},
        "nodes": [
            node("E_1_0", "embedding", "E", 0),
            node("3_7_1", "cross layer transcoder", "3", 1, influence.get("first", 0.2)),
            node("5_8_1", "cross layer transcoder", "5", 1, influence.get("second", 0.6)),
            node("b_3", "bias", "3", 0, 0.2),
            node("30_4_1", "logit", "30", 1),
        ],
        "links": [
            {"source": "3_7_1", "target": "5_8_1", "weight": -0.5},
            {"source": "E_1_0", "target": "3_7_1", "weight": 2.0},
            {"source": "gone", "target": "3_7_1", "weight": 9.0},
        ],
    }


def test_a_prompt_graph_becomes_columns_rows_and_indexed_edges() -> None:
    view = prompt_view(graph(), {(3, 7): "on «x»"})
    nodes = view["nodes"]
    at = {node_id: i for i, node_id in enumerate(nodes["id"])}
    assert view["rows"] == ["tokens", "L3", "L5", "output"]
    assert [c["label"] for c in view["columns"]] == ["constants", "a", "</script><img·src=x·onerror=alert(1)>"]
    assert nodes["feature"][at["3_7_1"]] == 7  # from the node id, not the paired number
    assert nodes["label"][at["3_7_1"]] == "on «x»"
    assert (nodes["row"][at["30_4_1"]], nodes["column"][at["30_4_1"]]) == (3, 2)
    assert nodes["column"][at["b_3"]] == 0
    assert view["edges"]["source"] == [at["E_1_0"], at["3_7_1"]]  # the strongest first, the dangling one dropped
    assert view["edges"]["weight"] == [2.0, -0.5]


def test_the_most_influential_node_enters_first() -> None:
    nodes = prompt_view(graph(), {})["nodes"]
    inner = [i for i, t in enumerate(nodes["type"]) if TYPES[t] in ("feature", "bias")]
    assert nodes["id"][inner[0]] == "5_8_1"
    assert nodes["share"][inner[0]] == 0.0
    assert nodes["share"][inner[1]] == pytest.approx(0.6)


def test_unnamed_positions_are_left_and_the_target_is_in_the_last_column() -> None:
    nodes = [
        {"id": "f.3.7@other", "type": "feature", "layer": 3, "feature": 7, "position": "other", "influence": 0.5,
         "label": "3/7"},
        {"id": "logit", "type": "logit", "layer": None, "feature": None, "position": "last", "label": "target"},
    ]  # fmt: skip
    view = aggregate_view(
        {"positions": ["subject", "end", "other"], "target": "logit_difference", "nodes": nodes, "edges": []},
        {(3, 7): "on «·keys»"},
    )
    assert [c["label"] for c in view["columns"]] == ["other", "subject", "end"]
    at = {node_id: i for i, node_id in enumerate(view["nodes"]["id"])}
    assert view["nodes"]["column"][at["f.3.7@other"]] == 0
    assert view["nodes"]["column"][at["logit"]] == 2
    assert view["nodes"]["label"][at["f.3.7@other"]] == "on «·keys»"  # not the number the node already shows
    assert view["nodes"]["label"][at["logit"]] == "answer − wrong answer"


def test_a_node_without_an_influence_is_never_filtered_by_it() -> None:
    example = graph()
    example["nodes"][3]["influence"] = None
    nodes = prompt_view(example, {})["nodes"]
    assert nodes["share"][nodes["id"].index("b_3")] == 0.0


def test_cumulative_influences_are_distinguished_from_direct_ones() -> None:
    assert is_cumulative([0.1, 0.3, 0.5, 0.65, 0.78, 0.8])
    assert not is_cumulative([0.4, 0.2, 0.1, 0.05, 0.01, 0.001])


ONE_EDGE = {
    "positions": ["end"],
    "nodes": [
        {"id": "a", "type": "feature", "layer": 3, "feature": 7, "position": "end", "influence": 0.5},
        {"id": "y", "type": "logit", "layer": None, "feature": None, "position": None},
    ],
    "edges": [{"source": "a", "target": "y", "weight": 1.0}],
}


def test_a_checked_edge_carries_its_check() -> None:
    checked = {"kind": "value", "source": "a", "target": "y", "predicted": 1.0, "total_live": 0.7}
    view = aggregate_view(ONE_EDGE, {}, [checked])
    assert view["checks"]["0"]["total_live"] == 0.7 and view["checks"]["0"]["direct_live"] is None


def test_edges_through_patterns_are_marked_and_have_checks_of_their_own() -> None:
    aggregate = ONE_EDGE | {
        "qk_edges": [
            {"source": "a", "target": "y", "weight": -0.2, "strength": 0.2},
            {"source": "a", "target": "elsewhere", "weight": 9.0, "strength": 9.0},
        ],
        "heads": [{"id": "head.23.3@end", "influence": 0.25, "frequency": 0.5}],
    }
    checked = [{"kind": "qk", "source": "a", "target": "y", "predicted_qk": -0.2, "qk": -0.19}]
    view = aggregate_view(aggregate, {}, checked)
    assert view["edges"]["qk"] == [0, 1] and view["edges"]["weight"] == [1.0, -0.2]
    assert list(view["checks"]) == ["1"] and view["checks"]["1"]["qk"] == -0.19
    assert view["heads"] == [{"name": "L23 head 3", "query": "end", "influence": 0.25, "frequency": 0.5}]


def test_a_features_record_has_its_histogram_and_intervals_as_they_are_drawn() -> None:
    example = {"tokens": ["a", "b"], "activations": [0.0, 1.2345], "peak": 1, "document": 3}
    interval = {"low": 1.0, "high": 2.0, "count": 7}
    histogram = {"bin_width": 0.5, "positive": [1, 2], "negative": []}
    record = feature_record({"histogram": histogram, "intervals": [interval | {"examples": [example]}]})
    assert record["histogram"] == histogram
    assert record["intervals"] == [
        interval | {"examples": [{"t": ["a", "b"], "a": [0, 1.23], "p": 1, "d": 3, "cut": [False, False]}]}
    ]


def test_records_of_earlier_runs_have_no_histogram() -> None:
    record = feature_record({"examples": []})
    assert record["histogram"] is None and record["intervals"] == []
