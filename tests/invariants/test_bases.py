"""Exact identities of graphs in every basis (float64, tiny random models)."""

from __future__ import annotations

import pytest
import torch

from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.choose_neurons import choose_neurons, total_gradients
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.frozen import FrozenForward
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.rows import SourceIndex, direct_effects, feature_targets, placed
from mechstudy.circuits.targets import output_target
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.neurons import Neurons, with_neurons
from mechstudy.models.attention import recorded_patterns
from tests.support.bases_world import KINDS, SAES, bases, random_sae
from tests.support.interventions_world import transcoders
from tests.support.tiny import FAMILIES, tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])
CONFIG = AttributionConfig(max_features=60, max_neurons=150)
AGAINST = {"answer": 7, "wrong_answer": 99}


def graph_of(model, basis, config=CONFIG, **how):
    return attribute(model, basis, TOKENS, config, **AGAINST, **how)


def logit_difference(model):
    with recorded_patterns(model.hf):  # Gemma 2's own attention takes its softmax in float32
        logits, cap = model.forward(TOKENS[None]).logits[0], model.final_softcap
    logits = logits if cap is None else torch.atanh(logits / cap) * cap  # targets are read before the soft cap
    return float(logits[7] - logits[99])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_adds_up_to_its_target(family, kind):
    model = tiny_model(family)
    graph = graph_of(model, bases(model, kind))
    assert len(graph.value_R) > 20 and graph.index.n_features > 40
    size = graph.value_R.abs().max()
    assert (graph.A_RS.sum(1) - graph.value_R).abs().max() <= 1e-10 * size
    assert float(graph.value_R[0]) == pytest.approx(logit_difference(model), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_the_linear_model_run_forwards_gives_the_clean_run(family, kind):
    model = tiny_model(family)
    frozen = FrozenForward(model, linearise(model, bases(model, kind), TOKENS, elsewhere="linear"))
    logits = model.linear_logits(frozen.run([]).final_BTD[:, -1])[0]
    assert float(logits[7] - logits[99]) == pytest.approx(logit_difference(model), rel=1e-9)


@pytest.mark.parametrize("elsewhere", ["errors", "linear"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_doubling_a_node_moves_every_target_by_its_edge(family, kind, elsewhere):
    """Graph against intervention: two codes, one backward and explicit, one forward through native modules."""
    model = tiny_model(family)
    basis = bases(model, kind)
    config = CONFIG.model_copy(update={"elsewhere": elsewhere, "max_neurons": 10_000})
    graph = graph_of(model, basis, config)
    prompt = linearise(model, basis, TOKENS, elsewhere=config.elsewhere_of(True), first_is_constant=True)
    frozen = FrozenForward(model, prompt)
    clean = frozen.run([])
    here = graph.index.feature_slices[0]
    for column in (4, int(graph.A_RS[1:, here].abs().sum(0).argmax())):
        nodes = prompt.layers[0].nodes
        doubled = frozen.run([(0, int(nodes.position_M[column]), nodes.written()[column, None])])
        moved = model.linear_logits(doubled.final_BTD[:, -1] - clean.final_BTD[:, -1])[0]
        assert float(moved[7] - moved[99]) == pytest.approx(float(graph.A_RS[0, column]), abs=1e-9)
        for row in range(1, len(graph.value_R)):
            source = int(graph.column_R[row])
            layer, position = int(graph.feature_layer_S[source]), int(graph.feature_position_S[source])
            within = source - graph.index.feature_slices[layer].start
            direction = prompt.layers[layer].nodes.readers(torch.tensor([within]))[0][0]
            step = doubled.read[layer][0, position] - clean.read[layer][0, position]
            assert float(step @ direction) == pytest.approx(float(graph.A_RS[row, column]), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_depend_neither_on_batch_size_nor_on_order(kind):
    model = tiny_model()
    prompt = linearise(model, bases(model, kind), TOKENS)
    index = SourceIndex(prompt)
    targets = [t for layer, x in enumerate(prompt.layers) if x.nodes for t in feature_targets(prompt, layer, range(9))]
    together = direct_effects(prompt, index, targets)
    alone = torch.cat([direct_effects(prompt, index, [t]) for t in targets])
    assert torch.allclose(together, alone, atol=1e-12)
    assert torch.allclose(direct_effects(prompt, index, targets[::-1]).flip(0), together, atol=1e-12)


def test_neurons_leave_no_error():
    model = tiny_model()
    every = with_neurons(model, {}, range(model.n_layers))
    graph = graph_of(model, every, AttributionConfig(max_features=100_000, max_neurons=100_000))
    assert not graph.A_RS[:, graph.index.errors : graph.index.tokens].any()
    assert graph.index.n_features == 3 * 6 * model.d_mlp  # every neuron but the first position's
    scores = graph.scores()
    assert scores.replacement > 0.98 and scores.completeness > 0.98  # what is not expanded is negligible


def test_among_rows_other_neurons_are_left_out_and_what_dictionaries_miss_is_error():
    model = tiny_model()
    few = AttributionConfig(max_features=20, max_neurons=50)
    neurons = graph_of(model, with_neurons(model, {}, range(model.n_layers)), few)
    strict, among = neurons.scores(), neurons.scores_among_rows()
    assert strict.completeness < 0.99 and neurons.neuron_layers == [0, 1, 2]
    assert among.replacement == pytest.approx(1) and among.completeness == pytest.approx(1)
    mixed = graph_of(model, bases(model, "mixed"), few)
    assert 0 < mixed.scores().replacement < mixed.scores_among_rows().replacement < 0.999


def test_fewer_neurons_leave_the_rest_as_errors_and_the_strongest_as_nodes():
    model = tiny_model("gemma2")
    every = with_neurons(model, {}, range(model.n_layers))
    prompt = linearise(model, every, TOKENS, first_is_constant=True)
    direction = torch.randn(model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = output_target(prompt, 6, direction, 0.0)
    [few] = choose_neurons([prompt], [[target]], torch.ones(1), 100)
    assert sum(len(x.nodes.value_M) for x in few.layers) == 100
    for one, all_of_it in zip(few.layers, prompt.layers, strict=True):
        written = torch.zeros_like(one.error_TD).index_add(0, one.nodes.position_M, one.nodes.written())
        whole = torch.zeros_like(written).index_add(0, all_of_it.nodes.position_M, all_of_it.nodes.written())
        assert torch.allclose(written + one.error_TD, whole, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_total_gradients_are_those_of_the_whole_linear_model(family):
    """What a layer's MLP writes more moves the target by the gradient, through linear MLPs above."""
    model = tiny_model(family)
    prompt = linearise(model, {}, TOKENS, elsewhere="linear")
    direction = torch.randn(model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = output_target(prompt, 6, direction, 0.0)
    gradients = total_gradients(prompt, [target])
    step = torch.randn(7, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for layer in range(model.n_layers):
        resid = step.clone()
        for x in prompt.layers[layer + 1 :]:
            normed = x.norm_attn.linear(resid)
            attn = x.attention.forward(x.pattern_QTS[None], normed[None])[0]
            attn = attn - x.attention.forward(x.pattern_QTS[None], torch.zeros_like(normed)[None])[0]
            attn = attn if x.norm_attn_post is None else x.norm_attn_post.linear(attn)
            mid = resid + attn
            read = x.norm_mlp.linear(resid if x.parallel else mid)
            resid = mid + x.mlp.forward(read) - x.mlp.forward(torch.zeros_like(read))
        moved = float(direction @ prompt.final_norm.linear(resid)[6])
        assert float((gradients[layer][0] * step).sum()) == pytest.approx(moved, rel=1e-9)
    assert torch.equal(placed([target], prompt.tokens_TD)[0, 6], direction)


@pytest.mark.parametrize("kind", SAES)
def test_a_perfect_sae_leaves_no_error(kind):
    model = tiny_model()
    site, d = kind.removeprefix("sae "), model.d_model
    perfect = {}
    for layer in (0, 2):
        # Every coordinate is two features: its positive part and its negative part.
        eye = torch.eye(d, dtype=torch.float64)
        meta = DictionaryMeta("sae", "jumprelu", d, d, 2 * d, None, f"{site}.{layer}", f"{site}.{layer}")
        both = torch.cat([eye, -eye])
        zero = torch.zeros(2 * d, dtype=torch.float64)
        perfect[layer] = Dictionary(
            meta, W_enc=both.T.clone(), b_enc=zero, W_dec=both, b_dec=zero[:d].clone(), threshold=zero.clone()
        )
    graph = graph_of(model, perfect, AttributionConfig(max_features=100_000))
    assert graph.A_RS[:, graph.index.errors : graph.index.tokens].abs().max() < 1e-12
    scores = graph.scores()
    assert scores.replacement > 0.98 and scores.completeness > 0.98


@pytest.mark.parametrize("kind", SAES)
def test_an_sae_without_features_is_all_error(kind):
    model = tiny_model()
    empty = bases(model, kind)
    for sae in empty.values():
        sae.b_enc -= 1e6
        sae.b_dec.zero_()
    graph = graph_of(model, empty)
    assert graph.index.n_features == 0 and graph.ledger(0).features == 0
    assert abs(graph.ledger(0).residual) < 1e-10 and graph.ledger(0).errors != 0


def test_nothing_passes_an_sae_of_the_residual_stream():
    model = tiny_model()
    prompt = linearise(model, {1: random_sae(model, "resid_post", 1)}, TOKENS, elsewhere="linear")
    target = output_target(prompt, 6, torch.ones(model.d_model, dtype=torch.float64), 0.0)
    [row] = direct_effects(prompt, SourceIndex(prompt), [target])
    index = SourceIndex(prompt)
    assert not row[index.token_slice].any() and row[: index.n_features].any()
    [below] = direct_effects(prompt, index, feature_targets(prompt, 1, [7]))
    assert below[index.token_slice].any() and not below[: index.n_features].any()


def test_a_dictionary_of_another_layer_is_refused():
    model = tiny_model()
    with pytest.raises(MechstudyError, match=r"layer 1: graphs need .* this dictionary is of resid_post\.0") as error:
        graph_of(model, {1: random_sae(model, "resid_post", 0)})
    assert "resid_post.1" in str(error.value)


def test_a_mixture_of_experts_has_no_neurons_and_passes_no_effects():
    model = tiny_model("mixtral")
    with pytest.raises(MechstudyError, match="mixture of experts"):
        Neurons(model, 0)
    with pytest.raises(MechstudyError, match="cannot pass the MLP of layer 0"):
        graph_of(model, {0: random_sae(model, "resid_post", 0)})
    assert with_neurons(model, {}, range(3)) == {}
    graph = graph_of(model, transcoders(model), AttributionConfig(elsewhere="linear"))
    assert abs(graph.ledger(0).residual) < 1e-10
