"""Exact identities of attribution graphs (float64, tiny random models): the mathematics, before any real model."""

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.frozen import FrozenForward
from mechstudy.circuits.graph import prune
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.rows import SourceIndex, direct_effects, feature_targets
from mechstudy.circuits.targets import AnswerContrast
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from tests.support.interventions_world import mlp_gradients, slope, transcoders
from tests.support.tiny import ALL, FAMILIES, tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])
CONFIG = AttributionConfig(max_features=10_000)


def graph_of(model, dicts, config=CONFIG, **kw):
    return attribute(model, dicts, TOKENS, config, answer=7, wrong_answer=99, **kw)


def uncapped_logits(model):
    """Targets are read before Gemma 2's soft cap."""
    logits, cap = model.forward(TOKENS[None]).logits, model.final_softcap
    return logits if cap is None else torch.atanh(logits / cap) * cap


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("family", ALL)
def test_every_row_adds_up_to_its_target(family, skip):
    model = tiny_model(family)
    graph = graph_of(model, transcoders(model, skip=skip))
    assert len(graph.value_R) > 20
    assert torch.allclose(graph.A_RS.sum(1), graph.value_R, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ALL)
def test_the_logit_target_is_the_models_own_logit_difference(family):
    model = tiny_model(family)
    graph = graph_of(model, transcoders(model))
    logits = uncapped_logits(model)[0]
    assert float(graph.value_R[0]) == pytest.approx(float(logits[7] - logits[99]), abs=1e-6)


@pytest.mark.parametrize("target", ["logit_difference", "logits"])
def test_top_logits_are_explained_against_the_mean_logit(target):
    model = tiny_model("gpt2")
    graph = graph_of(model, transcoders(model), AttributionConfig(target=target, max_features=10_000))
    assert torch.allclose(graph.A_RS.sum(1), graph.value_R, rtol=0, atol=1e-6)
    if target == "logits":
        logits = model.forward(TOKENS[None]).logits[0]
        expected = [float(logits[n.token] - logits.mean()) for n in graph.logits]
        assert graph.value_R[: len(expected)].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("family", ALL)
def test_doubling_a_feature_moves_every_target_by_its_edge(family, skip):
    """Graph against intervention: two codes, one backward and explicit, one forward through native modules."""
    model = tiny_model(family)
    dicts = transcoders(model, skip=skip)
    graph = graph_of(model, dicts)
    prompt = linearise(model, dicts, TOKENS)
    features = prompt.layers[0].nodes
    column = 4
    delta = (0, int(features.position_M[column]), features.written_MD[0][column, None])
    frozen = FrozenForward(model, prompt)
    clean, doubled = frozen.run([]), frozen.run([delta])
    change = model.linear_logits(doubled.final_BTD[:, -1])[0] - model.linear_logits(clean.final_BTD[:, -1])[0]
    assert float(change[7] - change[99]) == pytest.approx(float(graph.A_RS[0, column]), abs=1e-6)
    for row in range(1, len(graph.value_R)):
        source = int(graph.column_R[row])
        layer, position = int(graph.feature_layer_S[source]), int(graph.feature_position_S[source])
        direction = dicts[layer].W_enc[:, graph.feature_id_S[source]]
        moved = (doubled.read[layer][0, position] - clean.read[layer][0, position]) @ direction
        assert float(moved) == pytest.approx(float(graph.A_RS[row, column]), abs=1e-6)


def test_the_frozen_models_second_derivative_is_zero():
    model = tiny_model("qwen2")
    dicts = transcoders(model, skip=True)
    prompt = linearise(model, dicts, TOKENS)
    frozen = FrozenForward(model, prompt)
    vector = prompt.layers[0].nodes.written_MD[0][:1]
    position = int(prompt.layers[0].nodes.position_M[0])
    logits = [
        model.linear_logits(frozen.run([(0, position, s * vector)]).final_BTD[:, -1])[0] for s in (-1.0, 0.0, 1.0)
    ]
    assert torch.allclose(logits[0] + logits[2], 2 * logits[1], atol=1e-6)
    assert (logits[2] - logits[1]).abs().max() > 1e-3


def test_the_frozen_forward_reproduces_the_clean_pass():
    for family in FAMILIES:
        model = tiny_model(family)
        frozen = FrozenForward(model, linearise(model, transcoders(model, skip=True), TOKENS))
        clean = uncapped_logits(model)
        assert torch.allclose(model.linear_logits(frozen.run([]).final_BTD[:, -1]), clean, atol=1e-6), family


def test_rows_depend_neither_on_batch_size_nor_on_order():
    model = tiny_model()
    dicts = transcoders(model)
    prompt = linearise(model, dicts, TOKENS)
    index = SourceIndex(prompt)
    targets = feature_targets(prompt, 2, range(12)) + feature_targets(prompt, 0, range(5))
    together = direct_effects(prompt, index, targets)
    alone = torch.cat([direct_effects(prompt, index, [t]) for t in targets])
    backwards = direct_effects(prompt, index, targets[::-1]).flip(0)
    assert torch.allclose(together, alone, atol=1e-12)
    assert torch.allclose(together, backwards, atol=1e-12)


def test_no_edge_goes_from_a_later_layer_or_position_to_an_earlier_one():
    model = tiny_model()
    graph = graph_of(model, transcoders(model, (0, 1, 2), skip=True))
    for row, column in enumerate(graph.column_R.tolist()):
        if column < 0:
            continue
        backwards = (graph.feature_layer_S >= graph.feature_layer_S[column]) | (
            graph.feature_position_S > graph.feature_position_S[column]
        )
        assert not graph.A_RS[row, : graph.index.errors][backwards].any()


def test_a_perfect_transcoder_leaves_no_error():
    model = tiny_model()
    prompt = linearise(model, {}, TOKENS)
    d = model.d_model
    perfect = {}
    for layer in range(model.n_layers):
        # One feature per position, reading a constant through its bias and writing the MLP's own output there.
        x = prompt.layers[layer]
        read = torch.linalg.pinv(x.mlp_in_TD)  # mlp_in @ read = identity over positions
        meta = DictionaryMeta("transcoder", "topk", d, d, 7, 1, f"mlp_in.{layer}", f"mlp_out.{layer}")
        zero = torch.zeros(d, dtype=torch.float64)
        perfect[layer] = Dictionary(
            meta, W_enc=read, b_enc=torch.zeros(7, dtype=torch.float64), W_dec=x.error_TD.clone(), b_dec=zero
        )
    graph = graph_of(model, perfect)
    errors = graph.A_RS[:, graph.index.errors : graph.index.tokens].view(len(graph.value_R), model.n_layers, 7)
    assert errors.abs().max() < 1e-6  # what the first position writes is a bias
    scores = graph.scores()
    assert scores.replacement == pytest.approx(1, abs=1e-6) and scores.completeness == pytest.approx(1, abs=1e-6)
    apart = graph_of(model, perfect, first_is_constant=False)
    errors = apart.A_RS[:, apart.index.errors : apart.index.tokens].view(len(apart.value_R), model.n_layers, 7)
    assert errors[:, :, 1:].abs().max() < 1e-6 < errors[:, :, 0].abs().max()


def test_without_transcoders_the_ledger_holds_errors_tokens_and_biases():
    model = tiny_model("qwen2")
    graph = graph_of(model, {})
    ledger = graph.ledger(0)
    assert graph.index.n_features == 0 and ledger.features == 0
    assert ledger.errors != 0 and ledger.tokens != 0 and ledger.biases != 0  # Qwen2's value biases
    assert abs(ledger.residual) < 1e-6


def test_pruned_scores_count_what_was_cut_as_error():
    model = tiny_model()
    graph = graph_of(model, transcoders(model, (0, 1, 2)))
    everything = prune(graph, 1.0, 1.0)
    half = prune(graph, 0.5, 0.8)
    whole, kept, cut = graph.scores(), graph.scores(everything), graph.scores(half)
    assert kept.replacement == pytest.approx(whole.replacement, abs=1e-9)
    assert kept.completeness == pytest.approx(whole.completeness, abs=1e-9)
    assert cut.replacement < whole.replacement and cut.completeness < whole.completeness
    assert half.n_nodes < everything.n_nodes and half.n_edges < everything.n_edges


def test_every_kept_feature_has_an_input_and_a_path_to_the_target():
    model = tiny_model()
    graph = graph_of(model, transcoders(model, (0, 1, 2)))
    pruned = prune(graph, 0.6, 0.8)
    rows, columns = zip(*pruned.edges(), strict=True)
    fed, used = set(rows), set(columns)
    for row, column in enumerate(graph.column_R.tolist()):
        if column >= 0 and pruned.sources_S[column]:
            assert row in fed and column in used
        if column >= 0 and not pruned.sources_S[column]:
            assert row not in fed and column not in used


def test_unexpanded_features_lower_scores_and_keep_conservation():
    model = tiny_model()
    dicts = transcoders(model, (0, 1, 2))
    full, few = graph_of(model, dicts), graph_of(model, dicts, AttributionConfig(max_features=5))
    assert len(few.column_R) == 6
    assert few.scores().replacement < full.scores().replacement
    assert few.conservation_residual_max() < 1e-6
    assert torch.allclose(few.A_RS[0], full.A_RS[0], atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "neox"])
def test_live_gradients_are_the_slopes_of_the_unfrozen_model(family):
    model = tiny_model(family)
    gradients = mlp_gradients(model, TOKENS, AnswerContrast(Contrast((7,), (99,))), [0, 2])
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(edits):
        logits = model.forward(TOKENS[None], edits=edits).logits[0]
        return float(logits[7] - logits[99])

    for layer, gradient in gradients.items():
        expected = slope(value, vector, layer, 4, step=1e-3)
        assert float(gradient[4] @ vector) == pytest.approx(expected, rel=1e-2, abs=1e-4)
    assert not model.forward(TOKENS[None]).logits.requires_grad
