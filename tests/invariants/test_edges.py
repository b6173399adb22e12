"""Direct effects of edges of both kinds, measured with all other nodes held (float64, tiny random models)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast
from mechstudy.circuits.config import Elsewhere
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.question import Question
from mechstudy.dictionaries.neurons import with_neurons
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edge_effects import DirectEffects, SourceChange
from mechstudy.interventions.edges import LOGIT, EdgeCheck, EdgeInstance, measure_edges
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.interventions.results import read_csv
from mechstudy.models.attention import recorded_patterns
from mechstudy.models.sites import Site
from tests.support.bases_world import KINDS, bases, random_sae
from tests.support.interventions_world import logit_differences, pair, pairs, transcoders
from tests.support.thorough import few
from tests.support.tiny import FAMILIES, tiny_model

PAIR = pair(3)
SOME = ("llama", "gemma2", "gemma3", "gpt2", "neox")
FIRST = ("transcoder", "sae resid_post", "sae attn_out", "neurons")


def change(source, at, target=None, target_at=(), removed=1.0):
    """A source of which a share is taken away at one place; what it is set to concerns the total effect only."""
    return SourceChange(0, 0, source, target, (at,), (None,), (removed,), target_at)


def strongest_at(model, basis, layer, position, n=2, elsewhere: Elsewhere = "errors"):
    """The nodes of a layer that write most at a position."""
    nodes = linearise(model, basis, torch.tensor(PAIR.clean_tokens), elsewhere=elsewhere).layers[layer].nodes
    here = (nodes.position_M == position).nonzero()[:, 0]
    order = here[nodes.value_M[here].abs().argsort(descending=True)][:n]
    return [FeatureAt(layer, int(nodes.feature_M[m]), "x") for m in order]


def effects(model, basis, changes, elsewhere: Elsewhere = "errors"):
    return DirectEffects(model, basis, Question.of_pair(PAIR), changes, elsewhere)


def some_changes(model, basis, elsewhere: Elsewhere = "errors", removed=0.7):
    """From the highest layer with nodes but one to features of the highest, and to the logit difference."""
    low, high = sorted(basis)[-2:]
    targets = strongest_at(model, basis, high, 6, 2, elsewhere)
    sources = [(s, at) for at in (2, 6) for s in strongest_at(model, basis, low, at, 2, elsewhere)]
    changes = [change(s, at, target, (6,), removed) for s, at in sources for target in targets]
    return changes + [change(s, at, removed=removed) for s, at in sources]


@pytest.mark.parametrize("elsewhere", ["errors", "linear"])
@pytest.mark.parametrize("kind", few(KINDS, 3))
@pytest.mark.parametrize("family", few(SOME, 2))
def test_frozen_changes_are_the_value_edges_times_what_is_removed(family, kind, elsewhere):
    model = tiny_model(family)
    basis = bases(model, kind)
    direct = effects(model, basis, some_changes(model, basis, elsewhere), elsewhere)
    frozen = [values[0] for values in direct.measured(3)]
    predicted = [values[0] for values in direct.predicted()]
    assert frozen == pytest.approx(predicted, abs=1e-9)
    assert max(map(abs, frozen)) > 1e-3


@pytest.mark.parametrize("kind", FIRST)
@pytest.mark.parametrize("family", few(FAMILIES, 3))
def test_qk_edges_are_the_slopes_of_what_patterns_add(family, kind):
    """Through two layers of attention, each on its own."""
    model = tiny_model(family)
    basis = {0: transcoders(model, (0,))[0]}
    if kind == "neurons":
        basis = with_neurons(model, {}, range(3))
    elif kind != "transcoder":
        basis = {0: random_sae(model, kind.removeprefix("sae "), 0)}
    sources = [(s, at) for at in (2, 6) for s in strongest_at(model, basis, 0, at)]
    step = 1e-4
    up, down = (effects(model, basis, [change(s, at, removed=sign * step) for s, at in sources]) for sign in (1, -1))
    slopes = [(a[1] - b[1]) / (2 * step) for a, b in zip(up.measured(9), down.measured(9), strict=True)]
    predicted = [value[1] / step for value in up.predicted()]
    assert slopes == pytest.approx(predicted, rel=1e-5, abs=1e-7)
    assert max(map(abs, slopes)) > 1e-4


def held(model, basis, removal, site):
    """An edit that holds a site at its clean value minus what the removed source writes there."""
    tokens = torch.tensor([PAIR.clean_tokens])
    value = model.forward(tokens, capture=[site]).activations[site].clone()
    if site.layer == removal.source.layer:
        [at], [share], feature = removal.places, removal.removed, removal.source.feature
        one = basis[site.layer]
        reads = Site.parse(one.cfg.site_in)
        acts = one.encode(model.forward(tokens, capture=[reads]).activations[reads][0, at])
        value[0, at] -= share * acts[feature] * one.writes([feature])[0][0]
    return lambda _x: value


def held_change(model, basis, one, sites):
    """What one change does to its target in the model with its nodes held."""
    tokens = torch.tensor([PAIR.clean_tokens])
    edits = {site: held(model, basis, one, site) for site in sites}
    if one.target is None:
        before, after = (model.forward(tokens, edits=some).logits for some in ({}, edits))
        return float(logit_differences([PAIR], before) - logit_differences([PAIR], after))
    reads = Site.parse(basis[one.target.layer].cfg.site_in)
    read: list[torch.Tensor] = []

    def keep(x):
        read.append(x)
        return edits[reads](x) if reads in edits else x

    model.forward(tokens, edits=edits | {reads: keep})
    clean = model.forward(tokens, capture=[reads]).activations[reads]
    moved = (clean - read[0])[0, list(one.targets)]
    return float((moved @ basis[one.target.layer].encoder_rows([one.target.feature])[0]).sum())


@pytest.mark.parametrize("kind", ["transcoders", "sae resid_post", "sae attn_out", "sae mlp_out", "neurons"])
@pytest.mark.parametrize("family", few(SOME, 2))
def test_direct_changes_are_those_of_the_model_with_its_nodes_held(family, kind):
    """Against hooks of our own: MLPs without nodes are errors, which are held as well, or run."""
    model = tiny_model(family)
    basis = bases(model, kind)
    elsewhere = "errors" if kind == "transcoders" else "linear"
    changes = some_changes(model, basis, elsewhere)
    measured = effects(model, basis, changes, elsewhere).measured(4)
    sites = [Site.parse(one.sites_out[0]) for one in basis.values()]
    if elsewhere == "errors":
        sites += [Site("mlp_out", layer) for layer in range(3) if layer not in basis]
    with recorded_patterns(model.hf):  # Gemma 2's own attention takes its softmax in float32
        for one, (_, _, direct) in zip(changes, measured, strict=True):
            assert direct == pytest.approx(held_change(model, basis, one, sites), abs=1e-9)
    assert max(abs(frozen + qk - direct) for frozen, qk, direct in measured) > 1e-4  # norms do something


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_without_a_path_changes_nothing(kind):
    model = tiny_model("qwen3")
    basis = bases(model, kind)
    low, high = min(basis), max(basis)
    [below], [above] = (strongest_at(model, basis, layer, 4, 1) for layer in (low, high))
    later = change(below, 4, above, (3,))  # the target stands before the source
    higher = change(above, 4, below, (6,))  # the target is read below the source
    for one in (later, higher):
        direct = effects(model, basis, [one])
        assert direct.measured(1)[0] == pytest.approx((0, 0, 0), abs=1e-13) and direct.predicted() == [(0.0, 0.0)]


@pytest.mark.parametrize("family", few(SOME, 2))
def test_nothing_stands_between_the_last_layer_and_the_output(family, tmp_path):
    """There the direct effect is the whole effect, and patterns have no part in it."""
    model = tiny_model(family)
    basis = transcoders(model, (0, 2))
    [source] = strongest_at(model, basis, 2, 6, 1)
    check = EdgeCheck(replace(source, position="last"), LOGIT, (EdgeInstance(PAIR, 1.0),))
    [row] = read_csv(measure_edges(model, basis, [check], InterventionConfig(), tmp_path))
    rounding = 1e-6 if family == "gemma2" else 1e-10
    assert float(row["direct_live"]) == pytest.approx(float(row["total_live"]), abs=rounding)
    assert abs(float(row["total_live"])) > 1e-3 and float(row["qk"]) == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("kind", ["transcoders", "sae resid_post", "neurons"])
def test_sources_take_the_value_of_the_corrupted_prompt(kind, tmp_path):
    model, some = tiny_model(), pairs(3)
    basis = bases(model, kind)
    low = min(basis)
    own = NamedActivations(model, basis, some)
    other = NamedActivations(model, basis, some, corrupted=True)
    features = [FeatureAt(low, f, "subject") for f in own.means(low, "subject").abs().topk(4).indices.tolist()]
    active = [(f, i) for f in features for i in range(3) if own.values([f])[f][i][2] != 0]
    checks = [
        EdgeCheck(f, LOGIT, tuple(EdgeInstance(some[i], 0.5) for g, i in active if g == f), "qk")
        for f in dict.fromkeys(f for f, _ in active)
    ]
    rows = read_csv(
        measure_edges(model, basis, checks, InterventionConfig(), tmp_path, replace_by="corrupted", elsewhere="linear")
    )
    assert len(rows) == len(active) > 4
    for row in rows:
        [f] = [f for f in features if str(f) == row["source"]]
        [i] = [i for i, one in enumerate(some) if one.id == row["prompt_id"]]
        a, b = (values.values([f])[f][i][2] for values in (own, other))
        assert float(row["removed"]) == pytest.approx((a - b) / a, abs=1e-10)
        assert float(row["predicted_qk"]) == pytest.approx(0.5 * (a - b) / a, abs=1e-10)
        assert float(row["frozen"]) == pytest.approx(float(row["predicted"]), abs=1e-9)
        clean = clean_run(model, torch.tensor([some[i].clean_tokens]), (low,))
        edited = edited_run(model, basis, clean, [[SetFeature(low, f.feature, 2, b)]])
        expected = Contrast.of_pair(some[i]).change(clean.logits_BV[0], edited.logits[0])
        assert float(row["total_live"]) == pytest.approx(expected, abs=1e-9)
    assert any(float(row["removed"]) not in (0.0, 1.0) for row in rows)


def test_edges_are_chosen_by_what_their_replacement_is_predicted_to_change(tmp_path):
    """A strong edge whose source is the same in the corrupted prompt comes after a weak one whose source changes."""
    model, prompt = tiny_model(), PAIR.model_copy(update={"positions": {"early": 1, "subject": 2, "last": 6}})
    basis = transcoders(model)
    sources = {name: strongest_at(model, basis, 0, at, 1)[0] for name, at in (("early", 1), ("subject", 2))}
    checks = [
        EdgeCheck(replace(sources[name], position=name), LOGIT, (EdgeInstance(prompt, weight),))
        for name, weight in (("early", 5.0), ("subject", 0.1))
    ]
    config = InterventionConfig(n_edges=1)
    for replace_by, chosen in (("zero", "early"), ("corrupted", "subject")):
        path = measure_edges(model, basis, checks, config, tmp_path / replace_by, replace_by=replace_by)
        assert [row["source"].partition("@")[2] for row in read_csv(path)] == [chosen]
