"""Exact identities of interventions (float64, tiny random models)."""

import pytest
import torch

from mechstudy.circuits.active_nodes import applies_at
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.frozen import FrozenForward
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.named_positions import positions_left_to_right
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edge_summary import summarise_edges
from mechstudy.interventions.edges import LOGIT, EdgeCheck, EdgeInstance, measure_edges
from mechstudy.interventions.engine import (
    AddVector,
    ReplaceVector,
    SetFeature,
    clean_run,
    edited_run,
    site_edits,
)
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.interventions.metric import kl_divergence
from mechstudy.interventions.patching import donor
from mechstudy.interventions.results import read_csv
from mechstudy.models.sites import Site
from tests.support.interventions_world import logit_differences, pair, pairs, strongest_edges, transcoder, transcoders
from tests.support.tiny import tiny_model

FAMILIES = ("llama", "qwen2", "gemma3", "gpt2")
EQUAL = pairs(3, lengths=(7,))


def tokens_of(some, corrupted=False):
    return torch.tensor([p.corrupted_tokens if corrupted else p.clean_tokens for p in some])


def active(model, dicts, prompt, layer, position):
    """Features that fire at a position of a clean prompt, with their activations."""
    x = model.forward(torch.tensor([prompt.clean_tokens]), capture=[Site("mlp_in", layer)])
    acts = dicts[layer].encode(x.activations[Site("mlp_in", layer)][0, position])
    return [(int(f), float(acts[f])) for f in acts.nonzero()[:, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sham_changes_no_bit_whatever_the_layer_it_starts_at(family):
    model = tiny_model(family)
    dicts = transcoders(model, (0, 1, 2))
    clean = clean_run(model, tokens_of(EQUAL), range(model.n_layers))
    for layer in range(model.n_layers):
        zero = torch.zeros(model.d_model, dtype=torch.float64)
        rows = [
            [SetFeature(layer, 3, 2, None), SetFeature(layer, 4, 6, None)],
            [AddVector(Site("mlp_out", layer), 6, zero)],
            [],
        ]
        logits = edited_run(model, dicts, clean, rows).logits
        assert torch.equal(logits, clean.logits_BV)
        assert not kl_divergence(clean.logits_BV, logits).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_setting_a_feature_to_the_value_it_has_changes_nothing(family):
    model = tiny_model(family)
    dicts = transcoders(model)
    clean = clean_run(model, tokens_of(EQUAL), (0, 2))
    places = [(layer, at) for layer in (0, 2) for at in (2, 6)]
    rows = [
        [SetFeature(layer, f, at, v) for layer, at in places for f, v in active(model, dicts, p, layer, at)]
        for p in EQUAL
    ]
    assert sum(map(len, rows)) > 20
    assert torch.allclose(edited_run(model, dicts, clean, rows).logits, clean.logits_BV, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_started_at_the_layer_equals_the_whole_forward(family):
    model = tiny_model(family)
    dicts = transcoders(model)
    tokens = tokens_of(EQUAL)
    rows = [[SetFeature(2, f, 6, 0.0) for f, _ in active(model, dicts, p, 2, 6)] for p in EQUAL]
    started = edited_run(model, dicts, clean_run(model, tokens, (0, 2)), rows).logits
    whole = model.forward(tokens, edits=site_edits(dicts, rows)).logits
    assert torch.equal(started, whole)
    assert (started - model.forward(tokens).logits).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_different_interventions_in_one_batch_equal_each_alone(family):
    model = tiny_model(family)
    dicts = transcoders(model)
    vector = torch.linspace(-1, 1, model.d_model, dtype=torch.float64)
    f, _ = active(model, dicts, EQUAL[0], 0, 2)[0]
    rows = [
        [SetFeature(0, f, 2, 0.0), SetFeature(2, 5, 6, 1.5)],
        [AddVector(Site("mlp_out", 1), 6, vector), SetFeature(2, 7, 6, 2.0)],
        [ReplaceVector(Site("resid_post", 0), 2, vector), AddVector(Site("attn_out", 2), 4, vector)],
    ]
    tokens = tokens_of(EQUAL)
    together = edited_run(model, dicts, clean_run(model, tokens, (0, 1, 2)), rows).logits
    for i in range(3):
        alone = edited_run(model, dicts, clean_run(model, tokens[i : i + 1], (0,)), rows[i : i + 1]).logits
        assert torch.allclose(together[i], alone[0], rtol=0, atol=1e-10)
        assert (together[i] - model.forward(tokens[i : i + 1]).logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_ablation_of_the_strongest_feature_equals_its_edge(family, skip):
    """What the engine's ablation takes away at the MLP moves the linearised model by the edge."""
    model = tiny_model(family)
    dicts = transcoders(model, skip=skip)
    prompt = EQUAL[0]
    tokens = torch.tensor(prompt.clean_tokens)
    answer, wrong = prompt.answer_tokens[0], prompt.wrong_tokens[0]
    graph = attribute(model, dicts, tokens, AttributionConfig(), answer=answer, wrong_answer=wrong)
    column = int(graph.A_RS[0, : graph.index.n_features].abs().argmax())
    layer, at, f = (int(x[column]) for x in (graph.feature_layer_S, graph.feature_position_S, graph.feature_id_S))
    edits = site_edits(dicts, [[SetFeature(layer, f, at, 0.0)]])
    out = model.forward(tokens[None], capture=[Site("mlp_out", layer)], edits=edits, logits_at=None)
    clean = model.forward(tokens[None], capture=[Site("mlp_out", layer)]).activations[Site("mlp_out", layer)]
    removed = (out.activations[Site("mlp_out", layer)] - clean)[0]
    assert removed[torch.arange(7) != at].abs().max() == 0
    frozen = FrozenForward(model, linearise(model, dicts, tokens))
    moved = (
        model.linear_logits(frozen.run([]).final_BTD[:, -1])[0]
        - model.linear_logits(frozen.run([(layer, at, removed[at, None])]).final_BTD[:, -1])[0]
    )
    assert float(moved[answer] - moved[wrong]) == pytest.approx(float(graph.A_RS[0, column]), abs=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_last_layer_ablation_with_a_frozen_final_norm_equals_the_edge(family):
    model = tiny_model(family)
    last = model.n_layers - 1
    dicts = transcoders(model, (last,))
    prompt = EQUAL[0]
    tokens = torch.tensor(prompt.clean_tokens)
    answer, wrong = prompt.answer_tokens[0], prompt.wrong_tokens[0]
    graph = attribute(model, dicts, tokens, AttributionConfig(), answer=answer, wrong_answer=wrong)
    norm = linearise(model, dicts, tokens).final_norm
    clean = clean_run(model, tokens[None], (last,))
    handle = model.final_norm.register_forward_hook(lambda _m, args, _o: norm.forward(args[0]))
    for column in (graph.feature_position_S == 6).nonzero()[:, 0].tolist():
        edit = SetFeature(last, int(graph.feature_id_S[column]), 6, 0.0)
        live = logit_differences([prompt], edited_run(model, dicts, clean, [[edit]]).logits)
        whole = logit_differences([prompt], clean.logits_BV)
        assert float(whole - live) == pytest.approx(float(graph.A_RS[0, column]), abs=1e-8)
    handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_the_last_layer_everywhere_gives_the_corrupted_metric(family):
    model = tiny_model(family)
    site = Site("resid_post", model.n_layers - 1)
    everywhere = [p.model_copy(update={"positions": {str(i): i for i in range(7)}}) for p in EQUAL]
    names = positions_left_to_right(everywhere)
    assert names == [str(i) for i in range(7)]
    clean = clean_run(model, tokens_of(EQUAL), (site.layer,))
    corrupted = logit_differences(EQUAL, model.forward(tokens_of(EQUAL, corrupted=True)).logits)
    for is_corrupted in (True, False):
        other = donor(model, everywhere, [site], corrupted=is_corrupted)
        rows = [[e for name in names for e in other.edits(p, name, site)] for p in everywhere]
        patched = logit_differences(EQUAL, edited_run(model, {}, clean, rows).logits)
        unpatched = logit_differences(EQUAL, clean.logits_BV)
        share = (unpatched - patched) / (unpatched - corrupted)
        assert share.tolist() == pytest.approx([float(is_corrupted)] * 3, abs=1e-9)


def test_patching_before_the_difference_does_nothing_and_at_it_everything():
    """The prompts differ at the subject only, and before any layer nothing has moved from there."""
    model = tiny_model("llama")
    site = Site("resid_pre", 0)
    named = [p.model_copy(update={"positions": {"first": 1, "subject": 2}}) for p in EQUAL]
    corrupted = donor(model, named, [site])
    clean = clean_run(model, tokens_of(EQUAL), (0,))
    first = edited_run(model, {}, clean, [corrupted.edits(p, "first", site) for p in named]).logits
    subject = edited_run(model, {}, clean, [corrupted.edits(p, "subject", site) for p in named]).logits
    assert torch.equal(first, clean.logits_BV)
    assert torch.allclose(subject, model.forward(tokens_of(EQUAL, corrupted=True)).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_edges_equal_the_graphs_predictions(family, skip, tmp_path):
    model = tiny_model(family)
    dicts = transcoders(model, skip=skip)
    checks = strongest_edges(model, dicts, pairs(3), 8)
    config = InterventionConfig(n_edges=1000, bootstrap=100)
    path = measure_edges(model, dicts, checks, config, tmp_path, batch_tokens=64)
    rows = read_csv(path)
    assert len(rows) == sum(len(check.instances) for check in checks) > 40
    for row in rows:
        assert float(row["frozen"]) == pytest.approx(float(row["predicted"]), abs=1e-8)
    assert any(abs(float(r["total_live"]) - float(r["frozen"])) > 1e-4 for r in rows)
    summary = summarise_edges(path, config, "b")
    assert summary["spearman_frozen"] == pytest.approx(1, abs=1e-3) and summary["n"] == len(checks)
    assert summary["max_relative_error_frozen_instance"] < 1e-4


def test_an_edge_between_several_positions_is_the_sum_over_all_of_them(tmp_path):
    model = tiny_model("qwen2")
    dicts = transcoders(model)
    prompt = pair(0)
    graph = attribute(
        model, dicts, torch.tensor(prompt.clean_tokens), AttributionConfig(),
        answer=prompt.answer_tokens[0], wrong_answer=prompt.wrong_tokens[0],
    )  # fmt: skip
    n = graph.index.n_features
    ids = graph.feature_id_S[:n][graph.feature_layer_S[:n] == 0]
    feature = int(ids.bincount().argmax())
    columns = [c for c in range(n) if graph.feature_layer_S[c] == 0 and graph.feature_id_S[c] == feature]
    assert len(columns) > 1
    predicted = float(graph.A_RS[0, columns].sum())
    places = tuple(int(graph.feature_position_S[c]) for c in columns)
    check = EdgeCheck(FeatureAt(0, feature, "other"), LOGIT, (EdgeInstance(prompt, predicted, places),))
    row = read_csv(measure_edges(model, dicts, [check], InterventionConfig(), tmp_path))[0]
    assert float(row["frozen"]) == pytest.approx(predicted, abs=1e-8)


def test_features_are_not_set_at_the_first_position_or_at_sinks():
    model = tiny_model("llama")
    tokens = tokens_of(EQUAL)
    site = Site("mlp_in", 0)
    norms = model.forward(tokens, capture=[site]).activations[site].norm(dim=-1)
    limit = 1.001 * float(norms[0].sort().values[3])
    dictionary = transcoder(model.d_model, 0, max_input_norm=limit)
    x = model.forward(tokens, capture=[site]).activations[site]
    at = torch.arange(7).expand(3, -1)
    expected = applies_at(dictionary, x.flatten(0, 1), at.flatten()).view(3, 7)
    prompt = linearise(model, {0: dictionary}, tokens[0])
    nodes, bias = prompt.layers[0].nodes, prompt.layers[0].bias_TD
    assert nodes.position_M.unique().tolist() == expected[0].nonzero()[:, 0].tolist()
    assert torch.equal(bias.any(1), expected[0])
    assert not expected[:, 0].any() and torch.equal(expected[:, 1:], (x.norm(dim=-1) <= limit)[:, 1:])
    assert expected.any() and not expected[:, 1:].all()
    clean = clean_run(model, tokens, (0,))
    for position in range(7):
        rows = [[SetFeature(0, 3, position, 5.0)], [], []]
        moved = not torch.equal(edited_run(model, {0: dictionary}, clean, rows).logits, clean.logits_BV)
        assert moved == bool(expected[0, position])


def test_a_feature_is_read_live_after_what_was_edited_below_it():
    """Zeroing two features in two layers leaves the upper one at zero in the edited run, not minus its clean value."""
    model = tiny_model("llama")
    dicts = transcoders(model)
    prompt = EQUAL[0]
    tokens = torch.tensor([prompt.clean_tokens])
    clean = clean_run(model, tokens, (0,))
    lower = [SetFeature(0, f, 6, 0.0) for f, _ in active(model, dicts, prompt, 0, 6)]
    sites = [Site("mlp_in", 2), Site("mlp_out", 2)]
    before = edited_run(model, dicts, clean, [lower], capture=sites).activations
    live = dicts[2].encode(before[sites[0]][0, 6])
    upper = [SetFeature(2, f, 6, 0.0) for f in range(40)]
    after = edited_run(model, dicts, clean, [lower + upper], capture=sites).activations
    assert torch.allclose(before[sites[1]][0, 6] - after[sites[1]][0, 6], live @ dicts[2].W_dec, rtol=0, atol=1e-10)
    first = model.forward(tokens, capture=sites).activations
    assert not torch.allclose(live, dicts[2].encode(first[sites[0]][0, 6]), atol=1e-4)


def test_named_activations_equal_each_prompts_own():
    model = tiny_model("gemma3")
    dicts = transcoders(model)
    some = pairs(6)
    named = NamedActivations(model, dicts, some, batch_tokens=20)
    for i, p in enumerate(some):
        for f, value in active(model, dicts, p, 2, p.positions["subject"]):
            at = FeatureAt(2, f, "subject")
            assert named.values([at])[at][i] == {2: pytest.approx(value, abs=1e-10)}
    at = FeatureAt(0, 5, "other")
    values = named.values([at])[at]
    assert sorted(values[0]) == [0, 1, 3, 4, 5] and values[0][0] == 0.0
    # The first position is not valid: it counts neither in the sum nor in the number of rows.
    rows = [v for by in values.values() for place, v in by.items() if place]
    assert float(named.means(0, "other")[5]) == pytest.approx(sum(rows) / len(rows), abs=1e-10)
