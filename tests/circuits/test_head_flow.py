"""The heads of a graph: edges' parts and the influence through heads."""

from __future__ import annotations

import pytest
import torch

from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import prune
from mechstudy.circuits.head_flow import head_flow
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
    assert set(flow.edges) <= set(pruned.edges()) and 0.2 < flow.share <= 1 + 1e-5
    assert len(flow.edges) == min(500, pruned.n_edges)
    for (row, column), parts in flow.edges.items():
        listed = sum(weight for *_, weight in parts["heads"])
        assert all(0 <= head < 4 and query <= 6 for _, head, query, _ in parts["heads"])
        if len(parts["heads"]) == 0:
            assert parts["direct"] == pytest.approx(float(graph.A_RS[row, column]), rel=0.3)
        elif len(parts["heads"]) < 5:  # what is not listed is small
            whole = sum(abs(weight) for *_, weight in parts["heads"]) + abs(parts["direct"])
            assert abs(parts["direct"] + listed - float(graph.A_RS[row, column])) < 0.7 * whole


def test_influence_through_heads_is_part_of_all_influence(world):
    graph, pruned, flow = world
    _, rows_I = graph.influence
    shares = (graph.shares(pruned.columns_K) * pruned.edges_RK).sum(1)
    assert 0 < sum(flow.heads.values()) < float((rows_I * shares).sum())


def test_an_edge_within_a_position_to_the_next_layer_is_direct():
    """Nothing but the residual stream and that layer's own attention lies between."""
    model = tiny_model()
    graph = attribute(
        model, bases(model, "neurons"), TOKENS, AttributionConfig(max_features=400), answer=7, wrong_answer=99
    )
    flow = head_flow(graph, prune(graph, 1.0, 1.0))
    layers = {layer for parts in flow.edges.values() for layer, *_ in parts["heads"]}
    assert layers <= {0, 1, 2}
    for (row, column), parts in flow.edges.items():
        source = int(graph.feature_layer_S[column]) if column < graph.index.n_features else -1
        if graph.column_R[row] >= 0 and source >= 0:
            target = int(graph.feature_layer_S[graph.column_R[row]])
            assert all(source < layer <= target for layer, *_ in parts["heads"])
