"""What wrote queries and keys: it adds up to the stream and to the scores, exactly, in float64."""

import pytest
import torch

from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import prune
from mechstudy.circuits.head_flow import head_flow
from mechstudy.circuits.head_loadings import head_loadings
from mechstudy.circuits.head_pairs import Streams, head_pairs
from mechstudy.circuits.query_key import score_terms
from mechstudy.dictionaries.neurons import with_neurons
from mechstudy.models.query_key import query_keys
from tests.support.bases_world import KINDS, bases
from tests.support.clt_world import random_clt
from tests.support.thorough import few
from tests.support.tiny import ALL, tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])
EVERY = 10**6


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Cohere and ERNIE turn queries and keys in float32, whatever the model's dtype."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def graph_of(model, dictionaries):
    config = AttributionConfig(max_features=60)
    return attribute(model, dictionaries, TOKENS, config, answer=7, wrong_answer=99)


def constants(prompt, layer, position):
    """Biases that were written below a layer, and the position's embedding."""
    total = torch.zeros_like(prompt.tokens_TD[0])
    if prompt.position_TD is not None:
        total = total + prompt.position_TD[position]
    for x in prompt.layers[:layer]:
        of_mlp_TD = x.bias_TD if x.is_replaced and x.writes == "mlp_out" else x.mlp_bias_TD
        others_TD = None if of_mlp_TD is x.bias_TD else x.bias_TD
        for bias_TD in (x.attention_bias_TD, of_mlp_TD, others_TD):
            total = total if bias_TD is None else total + bias_TD[position]
    return total


def assert_streams_add_up(model, dictionaries):
    graph = graph_of(model, dictionaries)
    scores = query_keys(model, TOKENS)
    streams = Streams(graph.prompt, graph.index, scores)
    one_D = torch.linspace(-1, 1, model.d_model, dtype=torch.float64)
    for position in (0, 4, 6):
        found = streams.largest(position, {n: (n, one_D) for n in range(3)}, EVERY)
        for layer, (names, vectors_ND) in found.items():
            assert len(set(names)) == len(names) == len(vectors_ND)
            whole = vectors_ND.sum(0) + constants(graph.prompt, layer, position)
            assert torch.allclose(whole, scores[layer].resid_TD[position], rtol=0, atol=1e-10), (position, layer)


@pytest.mark.parametrize("family", few(ALL))
def test_nodes_heads_and_constants_add_up_to_the_stream(family):
    model = tiny_model(family)
    assert_streams_add_up(model, bases(model, "neurons"))


@pytest.mark.parametrize("kind", ["transcoders", "sae mlp_out"])
def test_dictionaries_and_their_errors_add_up_to_the_stream_too(kind):
    model = tiny_model()
    assert_streams_add_up(model, with_neurons(model, bases(model, kind), range(model.n_layers)))


def test_features_that_write_to_several_layers_count_once_each():
    model = tiny_model()
    clt = random_clt(model)
    assert_streams_add_up(model, {layer: clt.layer(layer) for layer in range(model.n_layers)})


def test_saes_of_attention_stand_for_its_heads():
    model = tiny_model()
    graph = graph_of(model, bases(model, "sae attn_out"))  # of layers 0 and 2
    streams = Streams(graph.prompt, graph.index, query_keys(model, TOKENS))
    [names, _] = streams.largest(5, {0: (2, torch.ones(model.d_model).double())}, EVERY)[0]
    assert {name[0] for name in names if isinstance(name, tuple)} == {1}


def test_saes_of_the_stream_stand_for_all_that_is_below_them():
    model = tiny_model()
    graph = graph_of(model, bases(model, "sae and neurons"))  # the SAE holds resid_post of layer 1
    scores = query_keys(model, TOKENS)
    found = Streams(graph.prompt, graph.index, scores).largest(5, {0: (2, torch.ones(model.d_model).double())}, EVERY)
    names, vectors_ND = found[0]
    own, errors = graph.index.feature_slices[1], graph.index.error_slice(1)
    assert all(own.start <= name < own.stop or errors.start <= name < errors.stop for name in names)
    bias_D = graph.prompt.layers[1].bias_TD[5]
    assert torch.allclose(vectors_ND.sum(0) + bias_D, scores[2].resid_TD[5], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", few(KINDS))
def test_pairs_are_the_largest_terms_of_the_models_own_scores(kind):
    model = tiny_model()
    graph, scores = graph_of(model, bases(model, kind)), query_keys(model, TOKENS)
    flow = head_flow(graph, prune(graph, 1.0, 1.0))
    streams = Streams(graph.prompt, graph.index, scores)
    made = head_pairs(graph.prompt, graph.index, flow, scores)
    assert len(made) == min(10, len(flow.heads)) > 0
    for pairs in made:
        one = scores[pairs.layer]
        assert pairs.score == pytest.approx(float(one.score_QTS[pairs.head, pairs.query, pairs.key]), abs=1e-10)
        assert pairs.pattern == float(one.pattern_QTS[pairs.head, pairs.query, pairs.key]) > 0
        assert len({pair[:2] for pair in pairs.pairs}) == len(pairs.pairs)
        terms = [abs(term) for *_, term in pairs.pairs]
        assert terms == sorted(terms, reverse=True)
        any_D = torch.ones(model.d_model).double()
        at = [
            dict(zip(*streams.largest(position, {0: (pairs.layer, any_D)}, EVERY)[0], strict=True))
            for position in (pairs.query, pairs.key)
        ]
        for query, key, term in pairs.pairs:
            if query is not None and key is not None:
                a, b = at[0][query], at[1][key]
                [[expected, _], _] = score_terms(one, pairs.head, pairs.query, pairs.key, a[None], b[None]).tolist()
                assert term == pytest.approx(expected, abs=1e-10)


def test_the_key_of_a_head_is_where_it_reads_most_of_its_influence():
    model = tiny_model()
    graph = graph_of(model, bases(model, "neurons"))
    pruned = prune(graph, 1.0, 1.0)
    flow = head_flow(graph, pruned)
    rows, columns = (torch.tensor(side) for side in zip(*flow.edges, strict=True))
    split = head_loadings(graph.prompt, graph.index, graph.targets, rows, columns)
    sources, (_, rows_I) = graph.sources(), graph.influence
    shares = {}
    for e, (row, column) in enumerate(flow.edges):
        loading = split.loading_ELHT[e].abs()
        influence = float(rows_I[row] * graph.shares(columns[e : e + 1])[row, 0])
        parts = influence * loading / float(loading.sum() + split.direct_E[e].abs())
        for place in flow.keys:
            by_key = shares.setdefault(place, {})
            at = sources[column].position
            by_key[at] = by_key.get(at, 0.0) + float(parts[place])
    for place, (key, most) in flow.keys.items():
        assert most == pytest.approx(max(shares[place].values()), rel=1e-9)
        assert shares[place][key] == pytest.approx(most, rel=1e-9)
        assert flow.heads[place] == pytest.approx(sum(shares[place].values()), rel=1e-9)
