"""The heads of a graph: edges' parts and the influence through heads."""

from __future__ import annotations

import pytest
import torch

from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import prune
from mechstudy.circuits.head_flow import head_flow
from mechstudy.circuits.head_loadings import head_loadings
from tests.support.bases_world import bases
from tests.support.tiny import tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])


@pytest.fixture(scope="module", params=["skip transcoders", "neurons", "sae resid_post"])
def world(request):
    model = tiny_model()
    config = AttributionConfig(max_features=60)
    graph = attribute(model, bases(model, request.param), TOKENS, config, answer=7, wrong_answer=99)
    pruned = prune(graph, 0.8, 0.98)
    return graph, pruned, head_flow(graph, pruned)


def test_every_edge_has_its_direct_part_and_its_largest_heads(world):
    graph, pruned, flow = world
    assert set(flow.edges) <= set(pruned.edges()) and len(flow.edges) == min(500, pruned.n_edges)
    places = list(flow.edges)
    rows, columns = (torch.tensor(side) for side in zip(*places, strict=True))
    split = head_loadings(graph.prompt, graph.index, graph.targets, rows, columns)
    for e, place in enumerate(places):
        parts, loading_LHT = flow.edges[place], split.loading_ELHT[e]
        assert parts["direct"] == pytest.approx(float(split.direct_E[e]), abs=1e-10)
        listed = [abs(weight) for *_, weight in parts["heads"]]
        assert [weight for *_, weight in parts["heads"]] == pytest.approx(
            [float(loading_LHT[layer, head, query]) for layer, head, query, _ in parts["heads"]], abs=1e-10
        )
        size = float(loading_LHT.abs().sum() + split.direct_E[e].abs())
        expected = [v for v in loading_LHT.abs().flatten().topk(5).values.tolist() if v >= 0.02 * size]
        assert listed == pytest.approx(expected, abs=1e-10)


def test_influence_through_heads_is_part_of_all_influence(world):
    graph, pruned, flow = world
    _, rows_I = graph.influence
    shares = (graph.shares(pruned.columns_K) * pruned.edges_RK).sum(1)
    assert 0 < sum(flow.heads.values()) < float((rows_I * shares).sum())


def test_the_heads_of_an_edge_lie_between_its_ends():
    model = tiny_model()
    config = AttributionConfig(max_features=400)
    graph = attribute(model, bases(model, "neurons"), TOKENS, config, answer=7, wrong_answer=99)
    flow = head_flow(graph, prune(graph, 1.0, 1.0))
    between = 0
    for (row, column), parts in flow.edges.items():
        if graph.column_R[row] >= 0 and column < graph.index.n_features:
            source = int(graph.feature_layer_S[column])
            target = int(graph.feature_layer_S[graph.column_R[row]])
            assert all(source < layer <= target for layer, *_ in parts["heads"])
            between += len(parts["heads"])
    assert between > 0
