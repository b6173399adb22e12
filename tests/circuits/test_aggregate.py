"""Aggregation over prompts, and the JSON that other tools read, on a tiny model's graphs."""

import pytest
import torch

from mechstudy.circuits.aggregate import aggregate, aggregate_of
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import prune, share_kept
from mechstudy.circuits.influence import total_effects
from mechstudy.circuits.neuronpedia import graph_json
from mechstudy.circuits.node_names import aligned_names, in_order, is_named, node_id, position_names
from mechstudy.circuits.prompt_record import prompt_record
from mechstudy.interventions.features import positions_named
from tests.support.interventions_world import pairs, transcoders
from tests.support.tiny import tiny_model

CONFIG = AttributionConfig(max_features=500, aggregate_min_prompts=1)
POSITIONS = {"subject": 2, "last": 6}


@pytest.fixture(scope="module")
def graphs():
    model = tiny_model("llama")
    dicts = transcoders(model, (0, 1, 2))
    graphs = []
    for shift in range(3):
        tokens = torch.tensor([5, 17, 200 - shift, 33, 9, 120 + shift, 64])
        graph = attribute(model, dicts, tokens, CONFIG, answer=7, wrong_answer=99)
        graphs.append((graph, prune(graph, 0.8, 0.98)))
    return graphs


@pytest.fixture(scope="module")
def records(graphs):
    return [prompt_record(f"p{i}", graph, pruned, POSITIONS) for i, (graph, pruned) in enumerate(graphs)]


def test_positions_take_the_first_name_given_and_others_share_one():
    assert position_names({"a": 0, "b": 2, "also_b": 2}, 4) == ["a", "other", "b", "other"]


def test_unnamed_tokens_are_counted_from_the_nearest_named_one():
    assert aligned_names({"a": 1, "b": 4}, 7) == ["a-1", "a", "a+1", "b-1", "b", "b+1", "b+2"]
    assert aligned_names({"a": 0, "b": 2}, 3) == ["a", "a+1", "b"]  # of two as near, the left one
    assert aligned_names({"a": 1}, 4, 3) == ["a-1", "a", "a+1", "answer tokens"]
    assert aligned_names({}, 2) == ["other", "other"]


def test_relative_positions_name_the_same_tokens_again():
    """Names of every token resolve to it, in prompts of any length, so interventions reach what graphs name."""
    for one in pairs(4):
        names = aligned_names(one.positions, len(one.clean_tokens))
        assert [positions_named(one, name) for name in names] == [[i] for i in range(len(names))]


def test_only_tokens_that_prompts_name_are_named_whatever_their_names_look_like(graphs):
    """A prompt may call its last token ``digit-1``; the token before ``digit`` then stays without a name."""
    names = {"digit": 2, "digit-1": 6}
    assert aligned_names(names, 7) == ["digit-2", "other", "digit", "digit+1", "digit+2", "digit-1-1", "digit-1"]
    graph, pruned = graphs[0]
    nodes = [n for n in prompt_record("p", graph, pruned, names)["nodes"].values() if n["position"] is not None]
    assert {n["position"] for n in nodes if is_named(n)} == set(names)
    assert {n["position"] for n in nodes if not is_named(n)} == set(aligned_names(names, 7)) - set(names)
    of_three = aggregate([prompt_record(f"p{i}", *two, names) for i, two in enumerate(graphs)], CONFIG)["nodes"]
    assert {n["position"] for n in of_three if n["type"] == "feature" and is_named(n)} == set(names)
    assert in_order(aligned_names(names, 7), list(names)) == [
        "digit-2", "digit", "digit+1", "digit+2", "digit-1-1", "digit-1",
    ]  # fmt: skip


def test_positions_are_ordered_from_left_to_right():
    used = ["last", "last-1", "subject+2", "subject-10", "subject+11", "nowhere+1", "other"]
    ordered = in_order(used, ["subject", "last"])
    assert ordered == ["subject-10", "subject", "subject+2", "subject+11", "last-1", "last"]


def test_a_token_has_a_node_of_its_own_in_every_record(graphs, records):
    tokens = [key for key in records[0]["nodes"] if key.startswith("token@")]
    assert len(tokens) == 7 and "token@subject+1" in tokens
    graph, pruned = graphs[0]
    weights = sum(edge["weight"] for edge in records[0]["edges"] if edge["target"] == node_id("logit"))
    logit = sum(float(graph.A_RS[row, c]) for row, c in pruned.edges() if row == 0)
    assert weights == pytest.approx(logit)


def test_a_records_influence_is_the_graphs(graphs, records):
    graph, _ = graphs[0]
    total = float(graph.influence[0][graph.expanded_S].sum())
    features = [n for n in records[0]["nodes"].values() if n["type"] == "feature"]
    assert sum(n["influence"] for n in features) == pytest.approx(total)


def test_total_effect_of_features_nothing_reads_is_their_direct_effect(graphs):
    """The last layer's features reach the target directly only: their total effect is their edge."""
    graph, _ = graphs[0]
    effects = total_effects(graph.A_RS, graph.weights_R, graph.column_R, graph.value_R)
    last = (graph.feature_layer_S == 2).nonzero()[:, 0]
    assert len(last) and torch.allclose(effects[last], graph.A_RS[0, last], atol=1e-12)


def test_total_effects_go_through_intermediate_features_in_proportion(graphs):
    """By hand for one source: direct edge + sum over readers t of effect(t) * A[t, s] / value(t)."""
    graph, _ = graphs[0]
    effects = total_effects(graph.A_RS, graph.weights_R, graph.column_R, graph.value_R)
    source = int((graph.feature_layer_S == 1).nonzero()[0, 0])
    by_hand = float(graph.A_RS[0, source])
    for row in range(1, len(graph.column_R)):
        reader = int(graph.column_R[row])
        by_hand += float(effects[reader] * graph.A_RS[row, source] / graph.value_R[row])
    assert float(effects[source]) == pytest.approx(by_hand, abs=1e-9)


def test_frequency_counts_prompts_and_means_count_absence_as_zero(records):
    result = aggregate(records, CONFIG)
    by_id = {n["id"]: n for n in result["nodes"]}
    for key, node in by_id.items():
        if node["type"] != "feature":
            continue
        having = [r["nodes"][key] for r in records if key in r["nodes"]]
        assert node["frequency"] == pytest.approx(sum(n["kept"] for n in having) / 3)
        assert node["influence"] == pytest.approx(sum(n["influence"] for n in having) / 3)
        assert node["total_effect"] == pytest.approx(sum(n["total_effect"] for n in having) / 3)
    assert by_id[node_id("logit")]["frequency"] == 1


def test_edges_join_listed_nodes_and_instances_are_per_prompt_weights(records):
    result = aggregate(records, CONFIG)
    ids = {n["id"] for n in result["nodes"]}
    with_instances = [e for e in result["edges"] if "instances" in e]
    assert with_instances
    for edge in result["edges"]:
        assert edge["source"] in ids and edge["target"] in ids
    for edge in with_instances:
        assert "@other" not in edge["source"] + edge["target"]
        weights = [w for _, w in edge["instances"]]
        assert edge["weight"] == pytest.approx(sum(weights) / len(weights)) and edge["n"] == len(weights)


def test_edges_through_patterns_that_can_be_measured_are_listed_with_their_weights(records):
    """A hundred stronger ones start at errors, which interventions leave alone."""
    strong = [{"source": f"error.0.{i}@last", "target": "logit", "weight": 5.0} for i in range(120)]
    weak = [{"source": "f.0.1@subject", "target": "logit", "weight": w} for w in (0.25, -0.5)]
    unnamed = [{"source": "f.0.1@other", "target": "logit", "weight": 1.0}]
    parts = [[*strong, *unnamed, weak[0]], [weak[1]], []]
    some = [record | {"qk_edges": part} for record, part in zip(records, parts, strict=True)]
    edges = aggregate(some, CONFIG)["qk_edges"]
    assert len(edges) == 101 and [e["source"] for e in edges if "instances" in e] == ["f.0.1@subject"]
    assert edges[-1]["instances"] == [("p0", 0.25), ("p1", -0.5)]
    assert edges[-1]["weight"] == pytest.approx(-0.25 / 3) and edges[-1]["frequency"] == pytest.approx(2 / 3)


def test_node_limits_are_kept(records):
    few = AttributionConfig(aggregate_nodes=5, aggregate_min_prompts=1)
    assert len(aggregate(records, few)["nodes"]) <= 15


@pytest.mark.parametrize("share, kept", [(0.5, 1), (0.51, 2), (1.0, 3)])
def test_share_kept_takes_the_fewest_largest_values(share, kept):
    assert int(share_kept(torch.tensor([1.0, 5.0, 4.0, 0.0]), share).sum()) == kept


def test_graph_json_has_unique_nodes_and_links_between_them(graphs):
    graph, pruned = graphs[0]
    strings = [str(t) for t in graph.tokens]
    content = graph_json(
        graph, pruned, slug="s", scan="tiny", prompt="p", token_strings=strings, config=CONFIG, extra={"a": 1}
    )
    ids = [n["node_id"] for n in content["nodes"]]
    assert len(ids) == len(set(ids))
    assert all(link["source"] in ids and link["target"] in ids for link in content["links"])
    shares = [n["influence"] for n in content["nodes"] if n["feature_type"] not in ("logit", "bias")]
    assert all(0 < share <= 1 for share in shares) and len(set(shares)) == len(shares)
    feature = next(n for n in content["nodes"] if n["feature_type"] == "cross layer transcoder")
    layer, index = (int(x) for x in feature["node_id"].split("_")[:2])
    assert feature["feature"] == (layer + index) * (layer + index + 1) // 2 + index
    assert feature["jsNodeId"] == f"{layer}_{index}-0"
    ledger = content["metadata"]["mechstudy"]["ledger"]
    assert ledger["total"] == pytest.approx(ledger["target"], abs=1e-6)


def test_aggregate_json_names_the_prompts_positions_and_layers(records):
    content = aggregate_of(records, CONFIG, behaviour="b", positions=["subject", "last"], layers=[2, 0], n_layers=3)
    assert list(content) == [
        "behaviour", "target", "n_prompts", "positions", "layers_with_dictionaries", "n_layers", "nodes", "edges",
        "qk_edges", "heads",
    ]  # fmt: skip
    named = ["subject-2", "subject-1", "subject", "subject+1", "subject+2", "last-1", "last", "other"]
    assert content["positions"] == named and content["layers_with_dictionaries"] == [0, 2]
    assert content["n_prompts"] == 3 and content["target"] == "logit_difference"
    assert content["nodes"] == aggregate(records, CONFIG)["nodes"]
