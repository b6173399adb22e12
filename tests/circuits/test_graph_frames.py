"""Nodes and edges of a prompt's graph as frames."""

import pytest
import torch

from mechstudy.circuits import AttributionConfig, PromptFrames, Question, attribute, explain_question, prune
from tests.support.interventions_world import pair, transcoders
from tests.support.tiny import tiny_model

CONFIG = AttributionConfig(max_features=60)


@pytest.fixture(scope="module", params=["logit_difference", "logits"])
def world(request):
    """A graph, what pruning keeps of it, and its frames."""
    model, prompt = tiny_model("llama"), pair(0)
    with_answers = Question.of_pair(prompt)
    question = with_answers if request.param == "logit_difference" else Question(prompt.clean, prompt.clean_tokens)
    graph = attribute(
        model,
        transcoders(model),
        torch.tensor(prompt.clean_tokens),
        CONFIG.model_copy(update={"target": request.param}),
        answer=prompt.answer_tokens[0],
        wrong_answer=prompt.wrong_tokens[0],
    )
    json, _ = explain_question(model, transcoders(model), question, CONFIG)
    return graph, prune(graph, CONFIG.node_threshold, CONFIG.edge_threshold), PromptFrames(json)


def test_nodes_are_those_that_pruning_keeps(world):
    graph, pruned, frames = world
    nodes = frames.nodes.filter(frames.nodes["kind"] != "bias")
    assert len(nodes) == pruned.n_nodes == nodes["node"].n_unique()
    assert len(nodes.filter(kind="output")) == len(graph.logits)
    features = nodes.filter(kind="feature")
    assert (features["activation"] > 0).all()
    assert features["node"].to_list() == [
        f"{feature.replace('/', '_')}_{position}" for feature, position in features.select("feature", "position").rows()
    ]


def test_influence_of_features_is_the_graphs(world):
    graph, pruned, frames = world
    influence_S, _ = graph.influence
    kept = pruned.sources_S[: graph.index.n_features].nonzero()[:, 0]
    assert frames.nodes.filter(kind="feature")["influence"].to_list() == influence_S[kept].tolist()


def test_edges_join_kept_nodes_with_the_matrixs_weights(world):
    graph, pruned, frames = world
    edges = frames.edges.filter(~frames.edges["source"].str.starts_with("b_"))
    assert len(edges) == pruned.n_edges
    assert edges["source"].is_in(frames.nodes["node"].implode()).all()
    assert edges["target"].is_in(frames.nodes["node"].implode()).all()
    assert sorted(edges["weight"]) == sorted(float(graph.A_RS[row, column]) for row, column in pruned.edges())


def test_every_column_is_described_once(world):
    graph, _, _ = world
    sources = graph.sources()
    x = graph.index
    assert len(sources) == x.n_sources == len(set(sources))
    assert [s.type for s in sources[x.errors : x.errors + 2]] == ["error", "error"]
    assert [s.feature for s in sources[x.token_slice]] == list(graph.tokens)
    assert [s.layer for s in sources[x.biases :]] == list(range(x.n_layers + 2))
