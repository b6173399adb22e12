"""Exact identities of graphs with cross-layer transcoders (float64, tiny random models)."""

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.frozen import FrozenForward
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.live import live_effects
from mechstudy.circuits.rows import SourceIndex, direct_effects, feature_targets
from mechstudy.circuits.targets import AnswerContrast
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.models.sites import Site
from tests.support.clt_world import random_clt, without_later_writes
from tests.support.tiny import tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])
CONFIG = AttributionConfig(max_features=10_000)
FAMILIES = ("llama", "qwen2", "gemma2", "gemma3", "gpt2", "neox")


def graph_of(model, dicts, config=CONFIG):
    return attribute(model, dicts, TOKENS, config, answer=7, wrong_answer=99)


def written(clt, layer, feature):
    """What a feature writes at its own layer and above, [L - l, D], from the whole transcoder's tensors."""
    return clt.W_dec[layer][feature]


def doubling(clt, graph, frozen, source):
    """Doubles the feature of a layer with the largest edges; every expanded feature must move by its edge.

    Returns the feature's column, the clean and the doubled run, and every feature's layer and move.
    """
    here = graph.index.feature_slices[source]
    column = here.start + int(graph.A_RS[1:, here].abs().sum(0).argmax())
    position, feature = int(graph.feature_position_S[column]), int(graph.feature_id_S[column])
    delta = (source, position, graph.activation_S[column] * written(clt, source, feature))
    clean, doubled = frozen.run([]), frozen.run([delta])
    moves = []
    for row in range(1, len(graph.value_R)):
        target = int(graph.column_R[row])
        layer, at = int(graph.feature_layer_S[target]), int(graph.feature_position_S[target])
        step = doubled.read[layer][0, at] - clean.read[layer][0, at]
        expected = float(step @ clt.W_enc[layer, graph.feature_id_S[target]])
        assert float(graph.A_RS[row, column]) == pytest.approx(expected, abs=1e-8)
        moves.append((layer, expected))
    return column, clean, doubled, moves


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_adds_up_to_its_target(family):
    model = tiny_model(family)
    graph = graph_of(model, random_clt(model).layers())
    assert len(graph.value_R) > 40 and set(graph.feature_layer_S.tolist()) == {0, 1, 2}
    assert torch.allclose(graph.A_RS.sum(1), graph.value_R, rtol=0, atol=1e-8)
    assert graph.conservation_residual_max() < 1e-6


@pytest.mark.parametrize("layers", [(0,), (0, 2), (1, 2)])
def test_some_layers_of_a_transcoder_close_the_ledger_too(layers):
    model, clt = tiny_model(), random_clt(tiny_model())
    graph = graph_of(model, {layer: clt.layer(layer) for layer in layers})
    assert torch.allclose(graph.A_RS.sum(1), graph.value_R, rtol=0, atol=1e-8)


def test_errors_are_the_mlp_outputs_minus_the_whole_reconstruction():
    model = tiny_model("gemma2")
    clt = random_clt(model)
    bare, prompt = linearise(model, {}, TOKENS), linearise(model, clt.layers(), TOKENS)
    x = torch.stack([layer.mlp_in_TD for layer in bare.layers], 1)
    y = torch.stack([layer.error_TD for layer in bare.layers], 1)  # without dictionaries: all that the MLPs wrote
    for layer, linear in enumerate(prompt.layers):
        expected = y[1:, layer] - clt.reconstruct(x[1:])[:, layer]
        # Nothing is active at the first position, which the dictionary does not describe.
        assert torch.allclose(linear.error_TD[1:], expected, rtol=0, atol=1e-12)
        assert torch.equal(linear.error_TD[0], y[0, layer])


@pytest.mark.parametrize("family", FAMILIES)
def test_doubling_a_feature_moves_every_target_by_its_edge(family):
    model = tiny_model(family)
    clt = random_clt(model)
    graph, prompt = graph_of(model, clt.layers()), linearise(model, clt.layers(), TOKENS)
    frozen = FrozenForward(model, prompt)
    for source in (0, 1):
        column, clean, doubled, moves = doubling(clt, graph, frozen, source)
        change = model.linear_logits(doubled.final_BTD[:, -1])[0] - model.linear_logits(clean.final_BTD[:, -1])[0]
        assert float(change[7] - change[99]) == pytest.approx(float(graph.A_RS[0, column]), abs=1e-8)
        # By writes at the source's own layer and, from layer 0, at layer 1.
        assert any(layer == 2 and abs(move) > 1e-6 for layer, move in moves)


def test_later_writes_reach_the_layers_between():
    """Features of layer 0 that write at layer 1 only have edges to layer 2 and none to layer 1."""
    model, whole = tiny_model(), random_clt(tiny_model())
    decoders = [torch.zeros_like(W) for W in whole.W_dec]
    decoders[0][:, 1] = whole.W_dec[0][:, 1]
    clt = CrossLayerTranscoder(whole.W_enc, whole.b_enc, whole.threshold, decoders, whole.b_dec)
    prompt = linearise(model, clt.layers(), TOKENS)
    index = SourceIndex(prompt)
    targets = [feature_targets(prompt, layer, range(10)) for layer in (1, 2)]
    at_next, above = (direct_effects(prompt, index, some)[:, index.feature_slices[0]] for some in targets)
    assert not at_next.any()
    assert above.abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_transcoder_without_later_writes_equals_plain_transcoders(family):
    model = tiny_model(family)
    clt = without_later_writes(random_clt(model))
    plain = {
        layer: Dictionary(
            DictionaryMeta("transcoder", "jumprelu", 32, 32, 24, None, f"mlp_in.{layer}", f"mlp_out.{layer}"),
            W_enc=clt.W_enc[layer].T,
            b_enc=clt.b_enc[layer],
            W_dec=clt.W_dec[layer][:, 0],
            b_dec=clt.b_dec[layer],
            threshold=clt.threshold[layer],
        )
        for layer in range(3)
    }
    ours, theirs = graph_of(model, clt.layers()), graph_of(model, plain)
    assert torch.equal(ours.column_R, theirs.column_R)
    assert torch.equal(ours.feature_id_S, theirs.feature_id_S)
    assert torch.allclose(ours.A_RS, theirs.A_RS, rtol=0, atol=1e-12)


def test_a_transcoder_of_zeros_gives_the_graph_without_dictionaries():
    model, clt = tiny_model(), random_clt(tiny_model())
    zero = CrossLayerTranscoder(
        torch.zeros_like(clt.W_enc),
        torch.zeros_like(clt.b_enc),
        clt.threshold,
        [torch.zeros_like(W) for W in clt.W_dec],
        torch.zeros_like(clt.b_dec),
    )
    ours, without = graph_of(model, zero.layers()), graph_of(model, {})
    assert ours.index.n_features == 0
    assert torch.equal(ours.A_RS, without.A_RS)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_live_effects_are_slopes_of_the_unfrozen_model(family):
    model = tiny_model(family)
    clt = random_clt(model)
    graph = graph_of(model, clt.layers())
    effects = live_effects(model, clt.layers(), graph, AnswerContrast(Contrast((7,), (99,))))

    def value(layer, position, step_ND):
        def push(row):
            def edit(x):
                x = x.clone()
                x[0, position] += row
                return x

            return edit

        edits = {Site("mlp_out", layer + i): push(row) for i, row in enumerate(step_ND)}
        logits = model.forward(TOKENS[None], edits=edits).logits[0]
        return float(logits[7] - logits[99])

    for layer in range(3):
        column = graph.index.feature_slices[layer].start + 2
        position = int(graph.feature_position_S[column])
        step = 1e-3 * graph.activation_S[column] * written(clt, layer, int(graph.feature_id_S[column]))
        slope = (value(layer, position, step) - value(layer, position, -step)) / 2e-3
        assert float(effects[column]) == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_a_layers_tensors_are_views_of_the_whole():
    clt = random_clt(tiny_model())
    one = clt.layer(1)
    assert one.W_enc.data_ptr() == clt.W_enc[1].data_ptr()
    assert one.W_writes.data_ptr() == clt.W_dec[1].data_ptr() == one.W_dec.data_ptr()
    assert one.sites_out == ("mlp_out.1", "mlp_out.2")
    x = torch.randn(5, 3, 32, dtype=torch.float64)
    assert torch.allclose(one.encode(x[:, 1]), clt.encode(x)[:, 1], atol=1e-12)


def test_one_layers_reconstruction_is_refused():
    one = random_clt(tiny_model()).layer(1)
    with pytest.raises(MechstudyError, match="one layer of a cross-layer transcoder") as error:
        one.reconstruct(torch.zeros(2, 32, dtype=torch.float64))
    assert "load_dictionary" in error.value.fix
    with pytest.raises(MechstudyError, match="its files hold all of them"):
        one.save("somewhere")


def test_a_transcoder_of_more_layers_than_the_model_is_refused():
    clt = random_clt(tiny_model(n_layers=4))
    with pytest.raises(MechstudyError, match=r"writes up to mlp_out.3, and the model has 3 layers"):
        graph_of(tiny_model(), {0: clt.layer(0)})


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_features_that_read_the_residual_stream_close_the_ledger_and_doubling_holds(family):
    """circuit-tracer's own transcoders read hook_resid_mid, before the MLP's norm."""
    model = tiny_model(family)
    clt = random_clt(model, site_in="resid_mid")
    graph, prompt = graph_of(model, clt.layers()), linearise(model, clt.layers(), TOKENS)
    assert len(graph.value_R) > 40
    assert torch.allclose(graph.A_RS.sum(1), graph.value_R, rtol=0, atol=1e-8)
    acts = model.forward(TOKENS[None], capture=[Site("resid_mid", 1)]).activations[Site("resid_mid", 1)][0]
    assert torch.allclose(prompt.layers[1].read_TD, acts, rtol=0, atol=1e-5)
    *_, moves = doubling(clt, graph, FrozenForward(model, prompt), 0)
    assert max(abs(move) for _, move in moves) > 1e-3


def test_a_residual_stream_that_parallel_blocks_do_not_have_is_refused():
    model = tiny_model("neox")
    with pytest.raises(MechstudyError, match=r"maps resid_mid.0 to mlp_out.0") as error:
        graph_of(model, random_clt(model, site_in="resid_mid").layers())
    assert "in parallel" in error.value.facts["model"]
