"""Groups of features: planted ones are found, edges between groups add up to the graph's, and order does not matter."""

import math
from copy import deepcopy
from random import Random

import numpy as np
import pytest

from mechstudy.circuits import BehaviourFrames, PromptFrames, Supernodes
from mechstudy.circuits.supernodes import silhouette
from mechstudy.core.errors import MechstudyError
from tests.support.planted_groups import adjusted_rand, planted_json
from tests.support.small_graphs import behaviour_json, prompt_json


def found(seed, noise):
    json, truth = planted_json(seed, noise)
    frame = Supernodes(PromptFrames(json)).frame
    return adjusted_rand([truth[node] for node in frame["node"]], frame["group"].to_list())


@pytest.mark.parametrize("noise", [0, 0.25, 0.5, 0.75, 1.0])
def test_planted_groups_are_found(noise):
    assert min(found(seed, noise) for seed in range(20)) >= 0.9


def test_groups_are_lost_where_noise_drowns_them():
    assert np.mean([found(seed, 2.0) for seed in range(20)]) < 0.6


def test_adjusted_rand_index_by_hand():
    assert adjusted_rand("aabb", "xxyy") == 1
    assert adjusted_rand("aaab", "xxyy") == 0  # 1 pair in both; 3 * 2 / 6 = 1 expected
    assert adjusted_rand("aabb", "xyxy") == pytest.approx(-0.5)


def test_silhouette_by_hand():
    distance = np.abs(np.subtract.outer([0.0, 1.0, 4.0], [0.0, 1.0, 4.0]))
    assert silhouette(distance, [0, 0, 1]) == pytest.approx(((4 - 1) / 4 + (3 - 1) / 3 + 0) / 3)
    assert silhouette(distance, [0, 0, 0]) is None


@pytest.mark.parametrize("seed", range(6))
def test_edges_between_groups_add_up_to_the_graphs(seed):
    json = behaviour_json(seed, 30)
    draw = Random(seed)
    for edge in json["edges"]:
        edge["weight"] = draw.randrange(-(2**20), 2**20) / 2**10  # sums of these have no rounding
    graph = BehaviourFrames(json, {})
    groups = Supernodes(graph, n_groups=5)
    assert groups.edges["weight"].sum() == math.fsum(edge["weight"] for edge in json["edges"])
    assert groups.edges["n"].sum() == len(json["edges"])
    own = dict(groups.frame.select("node", "group").iter_rows())
    into = dict.fromkeys(own.values(), 0.0) | {"logit": 0.0}
    for edge in json["edges"]:
        into[own.get(edge["target"], edge["target"])] += edge["weight"]
    sums = dict(groups.edges.select("target", "weight").group_by("target").sum().iter_rows())
    assert {name: value for name, value in into.items() if name in sums} == sums


@pytest.mark.parametrize("n_groups", [1, 3, 7, 99])
def test_as_many_groups_as_asked_for(n_groups):
    graph = BehaviourFrames(behaviour_json(2, 20), {})
    assert Supernodes(graph, n_groups).frame["group"].n_unique() == min(n_groups, len(graph.nodes) - 1)


def test_nodes_are_the_groups_and_all_that_is_no_feature():
    graph = BehaviourFrames(behaviour_json(1, 30), {})
    nodes = Supernodes(graph, n_groups=5).nodes
    assert nodes["node"].to_list() == ["g1", "g2", "g3", "g4", "g5", "logit"]
    features = graph.nodes.filter(kind="feature")
    assert nodes["n"].sum() == len(features)
    assert nodes.filter(kind="group")["influence"].sum() == pytest.approx(features["influence"].sum())
    unrecorded = Supernodes(PromptFrames(prompt_json(0, recorded=False))).nodes
    assert unrecorded["influence"].null_count() == len(unrecorded)


def test_order_of_the_file_does_not_matter():
    own = prompt_json(3, 20)
    other = deepcopy(own)
    other["nodes"].reverse()
    other["links"].reverse()
    a, b = Supernodes(PromptFrames(own)), Supernodes(PromptFrames(other))
    assert a.frame.equals(b.frame) and a.edges.equals(b.edges)


def test_decoder_directions_part_features_with_equal_edges():
    json, _ = planted_json(0, 0.0, n_groups=1, n_members=4)
    graph = PromptFrames(json)
    features = graph.nodes.filter(kind="feature")["feature"].to_list()
    decoders = {name: np.eye(2)[i % 2] for i, name in enumerate(features)}
    groups = dict(Supernodes(graph, None, decoders).frame.select("feature", "group").iter_rows())
    assert groups[features[0]] == groups[features[2]] != groups[features[1]] == groups[features[3]]


def test_a_group_is_labelled_by_its_strongest_features():
    json = behaviour_json(0, 6)
    groups = Supernodes(BehaviourFrames(json, {}, (), {(0, n): f"zero {n}" for n in range(50)}), n_groups=1)
    assert groups.frame["group"].unique().to_list() == ["g1"] and groups.silhouette is None
    assert groups.frame["group_label"][0].count("; ") == 2
    assert "in 1 group" in repr(groups)


def test_graphs_without_features_and_no_groups_are_refused():
    with pytest.raises(MechstudyError, match="no features"):
        Supernodes(PromptFrames(prompt_json(0, 0)))
    with pytest.raises(MechstudyError, match="0 groups"):
        Supernodes(PromptFrames(prompt_json(0)), n_groups=0)
