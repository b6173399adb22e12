"""Exact identities of graphs of a difference between two prompts (float64, tiny random models)."""

from __future__ import annotations

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.config import AttributionConfig, ContrastConfig
from mechstudy.circuits.contrast import Replaced
from mechstudy.circuits.custom_targets import Direction
from mechstudy.circuits.difference_graph import DifferenceRows, attribute_difference
from mechstudy.circuits.held_path import midpoints
from mechstudy.circuits.live import output_values
from mechstudy.circuits.rows import SourceIndex
from mechstudy.circuits.tangents import TOKENS as EMBEDDING
from mechstudy.circuits.tangents import prompt_difference
from mechstudy.circuits.targets import AnswerContrast, AnswerTokens
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.neurons import Neurons
from mechstudy.models.attention import recorded_patterns
from mechstudy.models.sites import Site
from tests.support.bases_world import KINDS, bases, random_sae
from tests.support.clt_world import random_clt
from tests.support.interventions_world import transcoders
from tests.support.targets import TARGETS
from tests.support.thorough import few
from tests.support.tiny import ALL, tiny_model

CLEAN = torch.tensor([5, 17, 200, 33, 9, 120, 64])
CORRUPTED = torch.tensor([5, 17, 31, 33, 9, 121, 64])
FIRST = 2  # position at which they differ
ANSWER = AnswerContrast(Contrast((7,), (99,)))


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Cohere and ERNIE turn queries and keys in float32, whatever the model's dtype."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def config(steps=10, **how):
    how = {"max_features": 20, "max_neurons": 60} | how
    return AttributionConfig(contrast=ContrastConfig(steps=steps), explains="difference", **how)


def graph_of(model, basis, steps=10, explained=ANSWER, corrupted=CORRUPTED, **how):
    return attribute_difference(model, basis, CLEAN, corrupted, config(steps, **how), explained=explained)


def residuals(graph):
    """What every row misses of its target's difference."""
    return (graph.A_RS.sum(1) - graph.value_R).abs()


def basis_of(model, kind):
    if kind != "clt":
        return bases(model, kind)
    whole = random_clt(model)
    return {layer: whole.layer(layer) for layer in range(model.n_layers)}


def logit_difference(model, tokens):
    with recorded_patterns(model.hf):
        logits, cap = model.forward(tokens[None]).logits[0], model.final_softcap
    logits = logits if cap is None else torch.atanh(logits / cap) * cap
    return float(logits[7] - logits[99])


@pytest.mark.parametrize("kind", few([*KINDS, "clt"]))
@pytest.mark.parametrize("family", few(["llama", "gpt2", "neox"]))
def test_every_row_adds_up_to_its_targets_difference(family, kind):
    """But for the midpoint rule's error, which falls with the square of the steps: so every derivative is right."""
    model = tiny_model(family)
    basis = basis_of(model, kind)
    coarse, fine = (graph_of(model, basis, steps) for steps in (12, 24))
    assert len(fine.value_R) == 21 and fine.index.n_features > 40
    between = logit_difference(model, CLEAN) - logit_difference(model, CORRUPTED)
    assert float(fine.value_R[0]) == pytest.approx(between, rel=1e-9) and abs(between) > 1e-3
    check_convergence(family, coarse, fine)


@pytest.mark.parametrize("family", few(ALL, 2))
def test_rows_add_up_in_every_family(family):
    model = tiny_model(family)
    coarse, fine = (graph_of(model, transcoders(model, (0, 2), skip=True), steps) for steps in (12, 24))
    check_convergence(family, coarse, fine)


def check_convergence(family, coarse, fine):
    """Twice the points, a quarter of the error; on steep paths these are too few, and errors fall faster."""
    steep = family.startswith(("gemma", "nemotron"))
    assert residuals(fine).max() < (1e-2 if steep else 1e-3) * fine.A_RS.abs().sum(1).max()
    ratio = float(residuals(coarse).norm() / residuals(fine).norm())
    assert ratio > 3.5 if steep else ratio == pytest.approx(4, rel=0.1)


def reference(model, between, graph, steps):
    """Every row by autograd through the model's own modules, nodes held by edits that add leaves.

    Returns:
        By row: the mean gradient at each site where something writes, over the path.
    """
    path = between.path
    shares = torch.tensor(midpoints(steps), dtype=torch.float64)[:, None, None]
    tokens = between.tokens_T[None].expand(steps, -1)
    sites = sorted({*path.sites, *path.whole})
    leaves = {site: torch.zeros(steps, len(CLEAN), model.width(site)).double().requires_grad_() for site in sites}
    seen = {}

    def keep(site, edit, x):
        seen[site] = x
        return edit(x) + leaves.get(site, 0)

    edits = {site: lambda x, s=site, e=edit: keep(s, e, x) for site, edit in path.edits(shares).items()}
    read = sorted({one.reads[0] if one.reads else one.site for one in path.nodes.values()})
    for site in read:
        parts = [Site("resid_pre", site.layer), Site("attn_out", site.layer)] if site.kind == "resid_mid" else [site]
        for part in parts:
            edits.setdefault(part, lambda x, s=part: keep(s, lambda y: y, x))
    with torch.enable_grad(), recorded_patterns(model.hf):
        values = [output_values(model, tokens, ANSWER, edits).sum()]
        for column in graph.column_R[1:].tolist():
            layer, feature, position = (
                int(x[column]) for x in (graph.feature_layer_S, graph.feature_id_S, graph.feature_position_S)
            )
            one, basis = path.nodes[layer], between.bases[layer]
            if isinstance(basis, Neurons):
                values.append(seen[one.site][:, position, feature].sum())
                continue
            x = seen[one.reads[0]][:, position]
            values.append((x @ basis.encoder_rows([feature])[0]).sum())
        for value in values:
            found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True)
            yield {site: g.mean(0) for site, g in zip(leaves, found, strict=True)}


@pytest.mark.parametrize(
    ("family", "kind"),
    few(
        [
            *(("llama", kind) for kind in (*KINDS, "clt")),
            *((family, kind) for family in ("neox", "gemma3") for kind in ("skip transcoders", "neurons")),
        ]
    ),
)
def test_edges_are_differences_times_gradients_of_the_models_own_modules(family, kind):
    model, steps = tiny_model(family), 3
    basis = basis_of(model, kind)
    graph = graph_of(model, basis, steps, max_features=6, max_neurons=2_000)
    elsewhere = config().elsewhere_of(any(k.startswith("sae") for k in kind.split(" ")))
    between = prompt_difference(model, basis, CLEAN, CORRUPTED, elsewhere)
    own, other = between.path.own, between.path.other
    x = graph.index
    for row, gradients in enumerate(reference(model, between, graph, steps)):
        expected = torch.zeros(x.n_sources, dtype=torch.float64)
        for layer, one in between.path.nodes.items():
            columns = x.feature_slices[layer]
            feature, position = graph.feature_id_S[columns], graph.feature_position_S[columns]
            change = (own.activation_TF[layer] - other.activation_TF[layer])[position, feature]
            for site in one.writes_at:
                along = one.along(gradients[site], site, feature)[position, torch.arange(len(feature))]
                expected[columns] += change * along
        assert torch.allclose(graph.A_RS[row, : x.n_features], expected[: x.n_features], rtol=0, atol=1e-10)
        for site, (clean, corrupted) in between.path.whole.items():
            columns = x.token_slice if site == EMBEDDING else x.error_slice(site.layer)
            whole = ((clean - corrupted) * gradients[site]).sum(1)
            if site != EMBEDDING and kind == "clt":
                continue
            assert torch.allclose(graph.A_RS[row, columns], whole, rtol=0, atol=1e-10)
        assert graph.A_RS[row, : x.n_features].abs().max() > 1e-6 or row
    assert row == 6


def test_a_linear_function_closes_exactly_with_one_step(monkeypatch):
    """An SAE of the last residual stream: what reads it there, without the final norm, is linear in its nodes."""
    model = tiny_model()
    direction = Direction(torch.randn(32, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 5)
    monkeypatch.setattr(model, "linear_norm", _without_final_norm(model))
    graph = graph_of(model, {2: random_sae(model, "resid_post", 2)}, 1, direction, max_features=1)
    assert abs(float(graph.value_R[0])) > 1e-3
    assert float(residuals(graph)[0]) <= 1e-10
    ledger = graph.target_ledger()
    assert ledger.tokens == 0 and ledger.biases == 0 and ledger.features != 0 and ledger.errors != 0


def _without_final_norm(model):
    own = model.linear_norm
    return lambda norm, x, live=False: own(None if norm is model.final_norm else norm, x, live)


def test_two_equal_prompts_have_an_empty_graph():
    model = tiny_model()
    for kind in ("skip transcoders", "neurons", "sae resid_post"):
        graph = graph_of(model, bases(model, kind), corrupted=CLEAN)
        assert graph.index.n_features == 0 and not graph.A_RS.any() and float(graph.value_R[0]) == 0


@pytest.mark.parametrize("kind", ["skip transcoders", "neurons", "sae resid_post"])
def test_what_both_prompts_have_in_common_has_no_edges(kind):
    """Before the first token that differs everything is the same; after it, the tokens that are."""
    model = tiny_model()
    graph = graph_of(model, bases(model, kind), 3, max_neurons=10_000)
    x = graph.index
    assert graph.feature_position_S.min() == FIRST
    for layer in range(model.n_layers):
        assert not graph.A_RS[:, x.error_slice(layer, FIRST)].any()
    tokens = graph.A_RS[:, x.token_slice]
    same = CLEAN == CORRUPTED
    assert not tokens[:, same].any() and tokens[:, ~same].any()
    assert not graph.A_RS[:, x.biases :].any()
    assert graph.difference.change_S.all()


def test_edges_to_the_answer_are_integrated_effects_where_both_hold_the_same():
    """Below an SAE of the residual stream tokens do not matter, and above it every MLP is a node."""
    model = tiny_model()
    basis = {0: random_sae(model, "resid_post", 0), **transcoders(model, (1, 2), skip=True)}
    graph = graph_of(model, basis, 7, max_features=1)
    path = prompt_difference(model, basis, CLEAN, CORRUPTED, "linear").path
    effects = Replaced(model, path.nodes, CLEAN, ANSWER, path.own, path.other).integrated(7)
    columns = (graph.feature_layer_S, graph.feature_id_S, graph.feature_position_S)
    edges = dict(zip(zip(*(c.tolist() for c in columns), strict=True), (-graph.A_RS[0]).tolist(), strict=False))
    places = zip(effects.layer_M.tolist(), effects.feature_M.tolist(), effects.position_M.tolist(), strict=True)
    predicted = dict(zip(places, effects.effect_M.tolist(), strict=True))
    assert edges.keys() == predicted.keys() and len(edges) > 30
    assert all(edges[place] == pytest.approx(predicted[place], abs=1e-12) for place in edges)
    for layer, error_T in effects.error_T.items():
        assert torch.allclose(-graph.A_RS[0, graph.index.error_slice(layer)], error_T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", [*TARGETS, pytest.param(None, id="top logits")])
def test_every_target_has_a_ledger(target):
    model = tiny_model()
    how = {"target": "logits", "max_logits": 4} if target is None else {}
    coarse, fine = (graph_of(model, transcoders(model), n, target, max_features=1, **how) for n in (24, 48))
    n = len(fine.logits)
    assert n == (2 if isinstance(target, AnswerTokens) else 4 if target is None else 1)
    assert fine.summed == isinstance(target, AnswerTokens)
    assert residuals(fine)[:n].max() < 1e-3 * fine.value_R[:n].abs().max()
    assert residuals(coarse)[:n].norm() / residuals(fine)[:n].norm() == pytest.approx(4, rel=0.1)
    if target is None:
        return
    nothing = torch.zeros(32, dtype=torch.float64, requires_grad=True)  # functions must be differentiable
    edits = {Site("resid_post", 2): lambda x: x + nothing}
    with recorded_patterns(model.hf):
        clean, corrupted = (float(output_values(model, t[None], target, edits)[0].detach()) for t in (CLEAN, CORRUPTED))
    assert fine.target_ledger().target == pytest.approx(clean - corrupted, rel=1e-9)


@pytest.mark.parametrize("kind", ["skip transcoders", "neurons", "sae resid_post"])
def test_rows_depend_neither_on_batch_size_nor_on_order(kind):
    model = tiny_model("gemma2")
    between = prompt_difference(model, bases(model, kind), CLEAN, CORRUPTED, "linear")
    rows = DifferenceRows(between.at(midpoints(3)))
    index = SourceIndex(rows.prompt)
    targets = [t for layer, x in enumerate(rows.prompt.layers) if x.nodes for t in rows.targets(layer, range(9))]
    together = rows.effects(index, targets)
    alone = torch.cat([rows.effects(index, [t]) for t in targets])
    assert torch.allclose(together, alone, atol=1e-12) and together.abs().max() > 1e-3
    assert torch.allclose(rows.effects(index, targets[::-1]).flip(0), together, atol=1e-12)


def test_fewer_neurons_leave_the_same_ledger():
    model = tiny_model("gemma2")
    few, every = (graph_of(model, bases(model, "neurons"), 3, max_features=1, max_neurons=n) for n in (50, 10**6))
    assert few.index.n_features == 50 < every.index.n_features
    ledgers = few.target_ledger(), every.target_ledger()
    assert ledgers[0].total == pytest.approx(ledgers[1].total, abs=1e-12)
    assert ledgers[0].errors != 0 and ledgers[1].errors == 0
    kept = set(
        zip(few.feature_layer_S.tolist(), few.feature_id_S.tolist(), few.feature_position_S.tolist(), strict=True)
    )
    assert len(kept) == 50


def test_activations_are_the_clean_prompts():
    model = tiny_model()
    basis = transcoders(model)
    graph = graph_of(model, basis)
    own = prompt_difference(model, basis, CLEAN, CORRUPTED).path.own
    only_there = graph.activation_S == 0
    assert only_there.any() and (graph.difference.change_S[only_there] < 0).all()
    for column in range(0, graph.index.n_features, 5):
        place = (int(graph.feature_position_S[column]), int(graph.feature_id_S[column]))
        assert graph.activation_S[column] == own.activation_TF[int(graph.feature_layer_S[column])][place]


def test_the_first_token_may_differ():
    model = tiny_model()
    corrupted = torch.cat([torch.tensor([6]), CLEAN[1:]])
    for kind in ("transcoders", "neurons"):
        graph = graph_of(model, bases(model, kind), 16, corrupted=corrupted, max_features=5)
        assert residuals(graph).max() < 1e-3 * graph.A_RS.abs().sum(1).max()
        assert graph.A_RS[0, graph.index.error_slice(0)][0] != 0 and graph.feature_position_S.min() == 1


def test_prompts_of_unequal_length_are_refused():
    model = tiny_model()
    with pytest.raises(MechstudyError, match="7 and 6 tokens"):
        graph_of(model, transcoders(model), corrupted=CORRUPTED[:6])


def test_sources_differ_by_what_they_write():
    """Features and errors of a layer together are the difference of its site, skip paths left out."""
    model = tiny_model()
    between = prompt_difference(model, transcoders(model, (0, 2), skip=True), CLEAN, CORRUPTED)
    [point] = between.at([0.5])
    with recorded_patterns(model.hf):
        sites = [Site(kind, 2) for kind in ("mlp_in", "mlp_out")]
        runs = [model.forward(t[None], capture=sites).activations for t in (CLEAN, CORRUPTED)]
    change = runs[0][sites[1]][0] - runs[1][sites[1]][0]
    layer = point.layers[2]
    written = layer.error_TD.index_add(0, layer.nodes.position_M, layer.nodes.written())
    written = written + layer.skip.forward(runs[0][sites[0]][0] - runs[1][sites[0]][0])
    assert torch.allclose(written, change, atol=1e-12) and change.abs().max() > 1e-2
