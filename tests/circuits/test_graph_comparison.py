"""Two graphs compared: nothing differs between a graph and itself, and a planted change is all that is found."""

import json
from copy import deepcopy

import pytest

from mechstudy.circuits import BehaviourFrames, GraphComparison, PromptFrames
from mechstudy.circuits.common_names import _check_alike
from mechstudy.circuits.drawn_influence import drawn_influence
from mechstudy.core.errors import MechstudyError
from tests.support.small_graphs import behaviour_json, prompt_json

SEEDS = range(8)


def graphs(seed):
    """A behaviour's graph, and a prompt's with influence recorded and without."""
    yield BehaviourFrames, behaviour_json(seed)
    yield PromptFrames, prompt_json(seed, named=seed % 2 == 0)
    yield PromptFrames, prompt_json(seed, recorded=False)


def made(kind, json):
    return kind(json, {}) if kind is BehaviourFrames else kind(json)


def edges_of(json):
    return json["links"] if "links" in json else json["edges"]


def differing(comparison):
    nodes, edges = (frame.filter(frame["change"] != "same") for frame in (comparison.nodes, comparison.edges))
    return nodes["node"].to_list(), edges.select("source", "target").rows()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_graph_differs_in_nothing_from_itself_in_any_order(seed):
    for kind, own in graphs(seed):
        other = deepcopy(own)
        other["nodes"].reverse()
        edges_of(other).reverse()
        comparison = GraphComparison(made(kind, own), made(kind, other))
        assert differing(comparison) == ([], []) and comparison.is_same
        summary = comparison.summary()
        for part in ("nodes", "features", "edges"):
            assert summary[part]["jaccard"] == summary[part]["jaccard_weighted"] == 1
        assert summary["rank_correlation"] == pytest.approx(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_changed_edge_is_all_that_changes(seed):
    own = behaviour_json(seed)
    other = deepcopy(own)
    edge = next(edge for edge in other["edges"] if edge["target"] != "logit")
    edge["weight"] += 1e-12
    comparison = GraphComparison(BehaviourFrames(own, {}), BehaviourFrames(other, {}))
    assert differing(comparison) == ([], [(edge["source"], edge["target"])])
    assert comparison.top(5, "edges")["weight_b"].to_list() == [edge["weight"]]
    assert GraphComparison(BehaviourFrames(own, {}), BehaviourFrames(other, {}), tolerance=1e-6).is_same


@pytest.mark.parametrize("seed", SEEDS)
def test_an_edge_to_the_answer_changes_its_sources_direct_effect(seed):
    own = prompt_json(seed)
    other = deepcopy(own)
    edge = next(e for e in other["links"] if e["target"] == "5_7_4" and not e["source"].startswith("E"))
    edge["weight"] = 5.0
    comparison = GraphComparison(PromptFrames(own), PromptFrames(other))
    layer, feature, position = edge["source"].split("_")
    name = f"f.{layer}.{feature}@{position}"
    assert differing(comparison) == ([name], [(name, "logit")])
    assert comparison.top(1)["direct_b"].to_list() == [5.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_taken_away_is_lost_with_its_edges_and_gained_the_other_way(seed):
    own = behaviour_json(seed)
    gone = own["nodes"][1 + seed % 3]["id"]
    other = deepcopy(own)
    other["nodes"] = [node for node in other["nodes"] if node["id"] != gone]
    other["edges"] = [edge for edge in other["edges"] if gone not in (edge["source"], edge["target"])]
    lost = {(e["source"], e["target"]) for e in own["edges"] if gone in (e["source"], e["target"])}
    for a, b, change in ((own, other, "lost"), (other, own, "gained")):
        comparison = GraphComparison(BehaviourFrames(a, {}), BehaviourFrames(b, {}))
        nodes, edges = differing(comparison)
        assert nodes == [gone] and set(edges) == lost
        assert set(comparison.top(99, "edges")["change"]) | {comparison.top(1)["change"][0]} == {change}
        n, both = len(own["nodes"]), len(own["nodes"]) - 1
        assert comparison.summary()["nodes"]["jaccard"] == pytest.approx(both / n)


def test_weighted_jaccard_by_hand():
    own, other = (behaviour_json(0, 0) for _ in range(2))
    own["edges"] = [{"source": "x", "target": "logit", "weight": w} for w in (1.0,)]
    own["edges"] += [{"source": "y", "target": "logit", "weight": 2.0}]
    other["edges"] = [{"source": "x", "target": "logit", "weight": -1.0}]
    other["edges"] += [{"source": "y", "target": "logit", "weight": 3.0}]
    edges = GraphComparison(BehaviourFrames(own, {}), BehaviourFrames(other, {})).summary()["edges"]
    assert edges["jaccard"] == 1 and edges["changed"] == 2
    assert edges["jaccard_weighted"] == pytest.approx(2 / (1 + 1 + 3))  # signs that differ share nothing


def test_influence_of_a_drawn_chain_by_hand():
    json = prompt_json(0, 0)
    json["nodes"] += [
        {"node_id": f"{layer}_3_4", "feature_type": "cross layer transcoder", "layer": str(layer), "ctx_idx": 4}
        for layer in (0, 1)
    ]
    json["links"] = [
        {"source": source, "target": target, "weight": weight}
        for source, target, weight in [("1_3_4", "5_7_4", -3.0), ("0_3_4", "5_7_4", 1.0), ("0_3_4", "1_3_4", 2.0)]
    ]
    influence = drawn_influence(PromptFrames(json))
    assert influence["1_3_4"] == 0.75 and influence["0_3_4"] == 0.25 + 0.75


def test_tokens_of_longer_prompts_are_matched_by_name_or_from_the_end():
    longer = ("So", ",", "The", " keys", " to", " the", " cabinet")
    own, other = prompt_json(1, named=True), prompt_json(1, tokens=longer, named=True)
    other["metadata"]["mechstudy"]["positions"] = {"subject": 3, "last": 6}
    named = GraphComparison(PromptFrames(own), PromptFrames(other))
    assert named.positions == "named"
    shared = set(named.nodes.filter(kind="token", change="gained")["node"])
    assert shared == {"token@subject-3", "token@subject-2"}
    end = GraphComparison(PromptFrames(own), PromptFrames(other), "end")
    assert set(end.nodes.filter(kind="token", change="gained")["node"]) == {"token@-7", "token@-6"}
    with pytest.raises(MechstudyError, match="5 and 7 tokens"):
        GraphComparison(PromptFrames(prompt_json(1)), PromptFrames(prompt_json(1, tokens=longer)))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (BehaviourFrames(behaviour_json(0), {}), PromptFrames(prompt_json(0)), "one graph is a behaviour's"),
        (
            BehaviourFrames(behaviour_json(0), {}),
            BehaviourFrames(behaviour_json(0, neuron_layers=[0, 1, 2, 3]), {}),
            "are features of a dictionary in one graph and neurons in the other",
        ),
        (
            BehaviourFrames(behaviour_json(0), {}),
            BehaviourFrames(behaviour_json(0, n_layers=12), {}),
            "models with 4 and 12 layers",
        ),
        (
            BehaviourFrames(behaviour_json(0), {}),
            BehaviourFrames(behaviour_json(0, explains="difference"), {}),
            "one graph explains clean and the other difference",
        ),
    ],
)
def test_graphs_that_share_no_names_are_refused_with_a_fix(a, b, words):
    with pytest.raises(MechstudyError, match=words) as error:
        GraphComparison(a, b)
    assert error.value.fix


def test_a_dict_is_no_graph():
    with pytest.raises(MechstudyError, match="a graph is a dict"):
        _check_alike(PromptFrames(prompt_json(0)), {"nodes": []})


def test_two_dictionaries_of_a_layer_are_refused():
    own, other = (BehaviourFrames(behaviour_json(0), {}) for _ in range(2))
    own.bases, other.bases = {2: "aaaa"}, {2: "bbbb"}
    with pytest.raises(MechstudyError, match="two dictionaries of layer 2"):
        GraphComparison(own, other)
    other.bases = {2: "dictionary", 3: "bbbb"}
    assert GraphComparison(own, other).is_same


def test_a_tolerance_is_a_share():
    graph = PromptFrames(prompt_json(0))
    with pytest.raises(MechstudyError, match="the tolerance is 1"):
        GraphComparison(graph, graph, tolerance=1)


def test_a_saved_comparison_has_the_summary_and_every_row(tmp_path):
    comparison = GraphComparison(PromptFrames(prompt_json(0)), PromptFrames(prompt_json(1)))
    held = json.loads(comparison.save(tmp_path / "new" / "comparison.json").read_text())
    assert held["summary"] == comparison.summary()
    assert len(held["nodes"]) == len(comparison.nodes) and len(held["edges"]) == len(comparison.edges)
    assert "Jaccard" in repr(comparison)
    with pytest.raises(MechstudyError, match="cannot be written"):
        comparison.save(tmp_path / "comparison.csv")
