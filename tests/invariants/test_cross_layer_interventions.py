"""Exact identities of interventions on features of cross-layer transcoders (float64, tiny random models)."""

from contextlib import ExitStack

import pytest
import torch

from mechstudy.features.examples import logit_effects
from mechstudy.interventions.ablation import ablate
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.controls import activation_sizes
from mechstudy.interventions.edges import measure_edges
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run, site_edits
from mechstudy.interventions.features import NamedActivations
from mechstudy.interventions.generation import generate_tokens, steering_vectors
from mechstudy.interventions.results import read_csv
from mechstudy.interventions.samples import build_plan
from mechstudy.interventions.steering import feature_direction
from mechstudy.models.sites import Site
from tests.support.clt_world import random_clt, without_later_writes
from tests.support.interventions_world import groups_of, pairs, strongest, strongest_edges
from tests.support.tiny import tiny_model

FAMILIES = ("llama", "gemma2", "gpt2", "neox")
EQUAL = pairs(3, lengths=(7,))
TOKENS = torch.tensor([p.clean_tokens for p in EQUAL])


def hooked(model, tokens, clt, new):
    """Logits with features set by hooks of our own: ``new`` is {(layer, position): {feature: value}}, in all rows.

    Each layer's encoder reads the MLP's input as the edited run has it, and its decoder adds to MLPs from there up.
    """
    residual = clt.site_in == "resid_mid"
    carried = [torch.zeros(*tokens.shape, model.d_model, dtype=torch.float64) for _ in range(model.n_layers)]

    def before(layer):
        def hook(_module, args):
            for (at, position), values in new.items():
                if at != layer:
                    continue
                pre = args[0][:, position] @ clt.W_enc[layer].T + clt.b_enc[layer]
                acts = pre * (pre > clt.threshold[layer])
                for feature, value in values.items():
                    for m in range(layer, model.n_layers):
                        row = clt.W_dec[layer][feature, m - layer]
                        carried[m][:, position] += (value - acts[:, feature])[:, None] * row

        return hook

    with ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            reader = block.norm_mlp if residual else block.mlp
            stack.callback(reader.register_forward_pre_hook(before(layer)).remove)
            writer = block.norm_mlp_post or block.mlp
            hook = writer.register_forward_hook(lambda _m, _a, out, layer=layer: out + carried[layer])
            stack.callback(hook.remove)
        return model.hf(tokens).logits[:, -1]


@pytest.mark.parametrize(
    ("family", "site_in"),
    [*((family, "mlp_in") for family in FAMILIES), *((family, "resid_mid") for family in ("llama", "gemma2", "gpt2"))],
)
def test_ablation_equals_hooks_written_by_hand(family, site_in):
    model = tiny_model(family)
    clt = random_clt(model, site_in=site_in)
    new = {(0, 2): {3: 0.0, 5: 2.0}, (0, 6): {1: 0.0}, (1, 6): dict.fromkeys(range(12), 0.0), (2, 6): {4: 1.0}}
    edits = [SetFeature(at, f, place, value) for (at, place), values in new.items() for f, value in values.items()]
    clean = clean_run(model, TOKENS, range(3))
    ours = edited_run(model, clt.layers(), clean, [edits] * 3).logits
    with torch.no_grad():
        assert torch.allclose(ours, hooked(model, TOKENS, clt, new), rtol=0, atol=1e-10)
    lower = [e for e in edits if e.layer == 0]
    only_own = edited_run(model, without_later_writes(clt).layers(), clean, [lower] * 3).logits
    assert (edited_run(model, clt.layers(), clean, [lower] * 3).logits - only_own).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_sham_changes_no_bit_and_start_does_not_matter(family):
    model = tiny_model(family)
    dicts = random_clt(model).layers()
    clean = clean_run(model, TOKENS, range(3))
    sham = [[SetFeature(layer, f, 6, None) for layer in range(3) for f in range(24)]] * 3
    assert torch.equal(edited_run(model, dicts, clean, sham).logits, clean.logits_BV)
    rows = [[SetFeature(1, f, 6, 0.0) for f in range(24)], [], [SetFeature(1, 3, 2, 4.0)]]
    started = edited_run(model, dicts, clean, rows).logits
    assert torch.equal(started, model.forward(TOKENS, edits=site_edits(dicts, rows)).logits)
    assert torch.equal(started[1], clean.logits_BV[1]) and not torch.equal(started[0], clean.logits_BV[0])


def test_the_same_edits_serve_several_forward_passes():
    model = tiny_model()
    edits = site_edits(random_clt(model).layers(), [[SetFeature(0, f, 6, 0.0) for f in range(24)]] * 3)
    assert torch.equal(model.forward(TOKENS, edits=edits).logits, model.forward(TOKENS, edits=edits).logits)


@pytest.mark.parametrize(("family", "site_in"), [*((f, "mlp_in") for f in FAMILIES), ("gemma2", "resid_mid")])
def test_frozen_edges_equal_the_graphs_predictions(family, site_in, tmp_path):
    model = tiny_model(family)
    dicts = random_clt(model, site_in=site_in).layers()
    config = InterventionConfig(n_edges=1000, bootstrap=100)
    checks = strongest_edges(model, dicts, pairs(2), 6)
    rows = read_csv(measure_edges(model, dicts, checks, config, tmp_path, batch_tokens=64))
    assert len(rows) > 20
    for row in rows:
        assert float(row["frozen"]) == pytest.approx(float(row["predicted"]), abs=1e-8)


def test_steering_adds_what_features_write_at_every_layer():
    model = tiny_model()
    clt = random_clt(model)
    vectors = steering_vectors(clt.layers(), {"0/3": 2.0, "1/5": -1.0})
    rows = {0: 2 * clt.W_dec[0][3, 0], 1: 2 * clt.W_dec[0][3, 1] - clt.W_dec[1][5, 0]}
    rows[2] = 2 * clt.W_dec[0][3, 2] - clt.W_dec[1][5, 1]
    assert {site.layer for site in vectors} == {0, 1, 2}
    for layer, row in rows.items():
        assert torch.allclose(vectors[Site("mlp_out", layer)], row, atol=1e-12)
    plain = generate_tokens(model, [5, 17, 200], max_new_tokens=8)
    steered = generate_tokens(model, [5, 17, 200], steer={"0/3": 90.0}, dictionaries=clt.layers(), max_new_tokens=8)
    own = without_later_writes(clt).layers()
    assert (
        plain
        != steered
        != generate_tokens(model, [5, 17, 200], steer={"0/3": 90.0}, dictionaries=own, max_new_tokens=8)
    )


def test_directions_sizes_and_logit_effects_count_every_layer():
    model = tiny_model()
    clt = random_clt(model)
    dicts = clt.layers()
    named = NamedActivations(model, dicts, pairs(4))
    member = strongest(named, 0, "last", 1)[0]
    mean = float(named.means(0, "last")[member.feature])
    written = clt.W_dec[0][member.feature]
    direction = feature_direction([member], named, dicts)
    for layer in range(3):
        assert torch.allclose(direction[Site("mlp_out", layer)], mean * written[layer], atol=1e-12)
    size = float(activation_sizes(named, dicts[0], 0, "last")[member.feature])
    assert size == pytest.approx(mean * float(written.norm()), abs=1e-10)
    norm = model.linear_norm(model.final_norm, written.sum(0)[None])
    logits = (written.sum(0) * norm.weight_D) @ model.unembedding.weight.T
    top = logit_effects(model, dicts[0], [member.feature], 3)[0]["top_logits"]
    assert [t["value"] for t in top] == pytest.approx(logits.topk(3).values.tolist(), abs=1e-3)


def test_ablate_and_the_plan_of_a_study_accept_layers_of_a_transcoder():
    model = tiny_model()
    clt = random_clt(model)
    dicts, some = clt.layers(), pairs(4)
    named = NamedActivations(model, dicts, some)
    members = strongest(named, 0, "last", 3)
    result = ablate(model, dicts, some, members, to="zero", n_resamples=100, n_permutations=99)
    with torch.no_grad():
        for p, effect in zip(some, result.prompts, strict=True):
            last = p.positions["last"]
            tokens = torch.tensor([p.clean_tokens])
            logits = hooked(model, tokens, clt, {(0, last): {m.feature: 0.0 for m in members}})[0]
            right, wrong = p.answer_tokens[0], p.wrong_tokens[0]
            assert effect.ablated == pytest.approx(float(logits[right] - logits[wrong]), abs=1e-8)
    config = InterventionConfig(n_discovery=4, n_samples=4, n_controls=1)
    plan = build_plan(model, dicts, some, some, groups_of(named), (), config, behaviour="b")
    steering = [v for v in plan.suites[0].variants if v.kind == "steering"]
    assert {e.site.layer for v in steering for e in v.edits(0)} == {0, 1, 2}
