"""Exact identities of keep-only runs and of components' effects (float64, tiny random models)."""

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.circuits.components import Components, HeadAt, MlpAt
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.named_positions import AlignedPrompt, NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.circuits.recording import INPUTS
from mechstudy.circuits.relevance import relevance_rules
from mechstudy.circuits.site_gradients import contrast_gradients
from mechstudy.circuits.universe import NodeSets
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.interventions.node_patching import measure_effects
from mechstudy.models.sites import Site
from tests.support.interventions_world import pair, pairs
from tests.support.thorough import few
from tests.support.tiny import ALL, tiny_model

SOME = pairs(4, lengths=(7, 9))
OTHERS = pairs(5, lengths=(7, 8), seed=1)
NAMES = NamedPositions.of([*SOME, *OTHERS])
KINDS = ("zero", "mean", "resample", "corrupted")


def clean_values(model, some=SOME, corrupted=False):
    values = []
    for p in some:
        tokens = torch.tensor([p.corrupted_tokens if corrupted else p.clean_tokens])
        values.append(contrasts(model.forward(tokens).logits, [Contrast.of_pair(p)]))
    return torch.cat(values)


def kept(nodes, *some):
    keep = torch.zeros(1, len(nodes.nodes), dtype=torch.bool)
    keep[0, list(some)] = True
    return keep


def linear_model():
    """A GPT-2 without norms, with equal attention to all earlier tokens and an identity for its activation function."""
    model = tiny_model("gpt2")
    model.final_norm.forward = lambda x: x
    for block in model.blocks:
        block.norm_attn.forward = block.norm_mlp.forward = block.mlp.act.forward = lambda x: x
        block.attn.c_attn.weight[:, : model.d_model] = 0
        block.attn.c_attn.bias[: model.d_model] = 0
    return model


@pytest.mark.parametrize("to", KINDS)
def test_keeping_everything_changes_no_bit(to):
    model = tiny_model()
    nodes = Components(model, NAMES)
    replacements = DonorSource(model, [nodes], to, NAMES, OTHERS)
    keep = torch.ones(1, len(nodes.nodes), dtype=torch.bool)
    for p in SOME:
        assert torch.equal(keep_only_values(model, [p], nodes, keep, replacements)[0], clean_values(model, [p]))


@pytest.mark.parametrize("family", ALL)
def test_keeping_nothing_with_corrupted_donors_is_the_corrupted_run(family):
    """Heads and MLPs write all but the embeddings, which are equal at the last position of these pairs."""
    model = tiny_model(family)
    nodes = Components(model, NAMES)
    replacements = DonorSource(model, [nodes], "corrupted", NAMES)
    values = keep_only_values(model, SOME, nodes, kept(nodes), replacements)[0]
    torch.testing.assert_close(values, clean_values(model, corrupted=True), rtol=1e-9, atol=1e-9)
    assert (values - clean_values(model)).abs().max() > 1e-3


def test_a_kept_node_computes_from_what_reaches_it():
    """With MLPs below replaced, the last MLP kept is not the clean one: its output is that of an edited run."""
    model = tiny_model()
    nodes = Components(model, NAMES, heads=False)
    replacements = DonorSource(model, [nodes], "zero", NAMES)
    keep = kept(nodes, *nodes.index([f"mlp.2@{name}" for name in NAMES.names]))
    values = keep_only_values(model, SOME, nodes, keep, replacements)[0]
    off = dict.fromkeys(nodes.reads[:2], torch.zeros_like)
    expected = [
        contrasts(model.forward(torch.tensor([p.clean_tokens]), edits=off).logits, [Contrast.of_pair(p)]) for p in SOME
    ]
    torch.testing.assert_close(values, torch.cat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("to", KINDS)
def test_order_of_circuits_and_prompts_and_batch_size_do_not_matter(to):
    model = tiny_model()
    nodes = Components(model, NAMES)
    keep = torch.rand(6, len(nodes.nodes), generator=torch.Generator().manual_seed(0)) < 0.5
    replacements = DonorSource(model, [nodes], to, NAMES, OTHERS)
    values = keep_only_values(model, SOME, nodes, keep, replacements)
    small = DonorSource(model, [nodes], to, NAMES, OTHERS, batch_tokens=1)
    backwards = keep_only_values(model, SOME[::-1], nodes, keep.flip(0), small, batch_tokens=20)
    torch.testing.assert_close(backwards.flip(0, 1), values, rtol=1e-10, atol=1e-12)
    assert values.std(0).min() > 1e-3


def test_a_run_started_above_the_first_layer_is_the_same():
    model = tiny_model()
    upper = Components(model, NAMES, layers=[1, 2])
    every = Components(model, NAMES)
    keep = torch.rand(3, len(upper.nodes), generator=torch.Generator().manual_seed(0)) < 0.5
    of_every = torch.ones(4, len(every.nodes), dtype=torch.bool)
    of_every[:3, every.index(upper.nodes)] = keep
    of_every[3, 0] = False  # so that the run begins at layer 0
    of_upper = keep_only_values(model, SOME, upper, keep, DonorSource(model, [upper], "corrupted", NAMES))
    whole = keep_only_values(model, SOME, every, of_every, DonorSource(model, [every], "corrupted", NAMES))
    torch.testing.assert_close(of_upper, whole[:3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", few(ALL, 3))
def test_circuits_that_share_a_prefix_do_what_each_does_alone(family):
    """Windows, caches and rotary maps of every family: several circuits start at the first token that can differ."""
    model = tiny_model(family)
    nodes = Components(model, NAMES)
    keep = torch.rand(3, len(nodes.nodes), generator=torch.Generator().manual_seed(0)) < 0.5
    replacements = DonorSource(model, [nodes], "corrupted", NAMES)
    assert replacements.donors(SOME[:1]).same_until == 2
    together = keep_only_values(model, SOME, nodes, keep, replacements)
    alone = torch.cat([keep_only_values(model, SOME, nodes, one[None], replacements) for one in keep])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["eap", "ig_nodes"])
def test_effects_do_not_depend_on_the_prefix_that_is_left_out_or_on_the_batch(method, monkeypatch):
    model = tiny_model()
    nodes = Components(model, NAMES)
    short = predict_effects(model, nodes, SOME, method=method, steps=3).effects_PN
    small = predict_effects(model, nodes, SOME, method=method, steps=3, batch_tokens=1).effects_PN
    monkeypatch.setattr("mechstudy.circuits.node_attribution.Batch.differing", lambda batch, _model: batch)
    whole = predict_effects(model, nodes, SOME, method=method, steps=3).effects_PN
    torch.testing.assert_close(short, whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(small, whole, rtol=1e-9, atol=1e-12)
    assert whole.abs().max() > 0.1


def test_sets_of_nodes_act_together():
    model = tiny_model()
    every = Components(model, NAMES)
    sets = NodeSets([Components(model, NAMES, heads=False), Components(model, NAMES, mlps=False)])
    keep = torch.rand(3, len(sets.nodes), generator=torch.Generator().manual_seed(0)) < 0.5
    of_every = torch.zeros(3, len(every.nodes), dtype=torch.bool)
    of_every[:, every.index(sets.nodes)] = keep
    of_sets = keep_only_values(model, SOME, sets, keep, DonorSource(model, [sets], "corrupted", NAMES))
    whole = keep_only_values(model, SOME, every, of_every, DonorSource(model, [every], "corrupted", NAMES))
    torch.testing.assert_close(of_sets, whole, rtol=1e-12, atol=1e-12)


def test_two_sets_that_change_one_site_are_refused():
    model = tiny_model()
    with pytest.raises(MechstudyError, match="two sets of nodes change mlp_out"):
        NodeSets([Components(model, NAMES), Components(model, NAMES, heads=False)])
    with pytest.raises(MechstudyError, match="other positions"):
        NodeSets([Components(model, NAMES, mlps=False), Components(model, NamedPositions.whole(), heads=False)])


def test_means_and_resamples_are_those_of_the_named_position():
    model = tiny_model()
    nodes = Components(model, NAMES)
    site = nodes.reads[3]
    rows = [model.forward(torch.tensor([p.clean_tokens]), capture=[site]).activations[site][0] for p in OTHERS]
    last = torch.stack([x[-1] for x in rows])
    donors = DonorSource(model, [nodes], "mean", NAMES, OTHERS).donors(SOME[:1])
    torch.testing.assert_close(donors.values[site][0, -1], last.mean(0))
    others = torch.cat([torch.cat([x[1:2], x[3:-1]]) for x in rows])
    torch.testing.assert_close(donors.values[site][0, 1], others.mean(0))
    torch.testing.assert_close(donors.values[site][0, 0], torch.stack([x[0] for x in rows]).mean(0))
    drawn = DonorSource(model, [nodes], "resample", NAMES, OTHERS).donors(SOME[:1])
    which = [i for i in range(5) if torch.allclose(drawn.values[site][0, -1], last[i])]
    assert len(which) == 1
    torch.testing.assert_close(drawn.values[site][0, 2], rows[which[0]][2])
    again = [DonorSource(model, [nodes], "resample", NAMES, OTHERS, draw=draw).donors(SOME[:1]) for draw in range(6)]
    assert len({float(one.values[site][0, -1, 0]) for one in again}) > 1


def test_tokens_that_a_shorter_corrupted_prompt_lacks_are_not_replaced():
    model = tiny_model()
    one = pair(0, 7)
    corrupted = (*one.clean_tokens[:2], 9, *one.clean_tokens[5:])
    short = one.model_copy(update={"corrupted_tokens": corrupted, "corrupted_positions": {"subject": 2, "last": 4}})
    nodes = Components(model, NAMES)
    donors = DonorSource(model, [nodes], "corrupted", NAMES).donors([short])
    assert donors.has_BT[0].tolist() == [short.corrupted_at(t) is not None for t in range(7)]
    assert not donors.has_BT.all()
    there = model.forward(torch.tensor([corrupted]), capture=[nodes.reads[1]]).activations[nodes.reads[1]]
    torch.testing.assert_close(donors.values[nodes.reads[1]][0, 6], there[0, 4])
    for effects in (predict_effects(model, nodes, [short]), measure_effects(model, nodes, [short])):
        assert torch.isfinite(effects.effects_PN).all()


@pytest.mark.parametrize("method", ["eap", "eap_ig_inputs", "eap_ig_activations"])
@pytest.mark.parametrize("to", KINDS)
def test_in_a_linear_model_predicted_effects_are_the_measured_ones(method, to):
    model = linear_model()
    nodes = Components(model, NAMES)
    predicted = predict_effects(model, nodes, SOME, method=method, replace_by=to, discovery=OTHERS, steps=2)
    measured = measure_effects(model, nodes, SOME, replace_by=to, discovery=OTHERS)
    torch.testing.assert_close(predicted.effects_PN, measured.effects_PN, rtol=1e-8, atol=1e-9)
    assert all(gap.share < 1e-8 for gap in predicted.gaps)
    assert measured.effects_PN.abs().max() > 0.1


def test_effects_of_heads_are_those_of_their_own_slices():
    model = tiny_model()
    nodes = Components(model, NamedPositions.whole())
    measured = measure_effects(model, nodes, SOME, replace_by="zero")
    head = nodes.index(["head.1.2"])[0]
    assert nodes.nodes[head] == HeadAt(1, 2, "all") and str(MlpAt(2, "all")) == "mlp.2@all"
    site, part = nodes.reads[2], slice(2 * model.head_dim, 3 * model.head_dim)

    def cut(x):
        x = x.clone()
        x[..., part] = 0
        return x

    for i, p in enumerate(SOME):
        logits = model.forward(torch.tensor([p.clean_tokens]), edits={site: cut}).logits
        change = contrasts(logits, [Contrast.of_pair(p)]) - clean_values(model, [p])
        torch.testing.assert_close(measured.effects_PN[i, head], change[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", few(["ig_nodes", "eap_ig_inputs", "eap_ig_activations"]))
def test_the_gap_of_a_path_closes_with_its_steps(method):
    model = tiny_model()
    nodes = Components(model, NAMES)
    few, many = (predict_effects(model, nodes, SOME, method=method, steps=steps) for steps in (1, 40))
    assert many.completeness["gap"].max() < 2e-3 < few.completeness["gap"].max()
    assert len(many.gaps) == (len(nodes.reads) if method == "eap_ig_activations" else 1)


@pytest.mark.parametrize("to", few(KINDS[::-1]))
def test_effects_of_all_nodes_divide_what_keep_only_runs_measure(to):
    """Along the path of all nodes the effects add up to m(none kept) - m(all kept)."""
    model = tiny_model()
    nodes = Components(model, NAMES)
    effects = predict_effects(model, nodes, SOME, method="ig_nodes", replace_by=to, discovery=OTHERS, steps=60)
    keep = torch.stack([torch.zeros(len(nodes.nodes)), torch.ones(len(nodes.nodes))]).bool()
    none, every = keep_only_values(model, SOME, nodes, keep, DonorSource(model, [nodes], to, NAMES, OTHERS))
    torch.testing.assert_close(effects.effects_PN.sum(1), none - every, rtol=2e-2, atol=1e-3)
    assert (none - every).abs().max() > 0.1


def test_first_order_effects_are_slopes_of_shares_and_gradients_times_differences():
    """Those of single heads against finite differences of an edit written with a hook."""
    model = tiny_model()
    nodes = Components(model, NAMES)
    predicted = predict_effects(model, nodes, SOME, method="eap").effects_PN
    donors = [DonorSource(model, [nodes], "corrupted", NAMES).donors([p]) for p in SOME]
    for name in ("head.0.1@subject", "head.1.2@other", "mlp.1@last"):
        [number] = nodes.index([name])
        node, layer = nodes.nodes[number], nodes.nodes[number].layer
        site = Site("attn_heads" if name[0] == "h" else "mlp_out", layer)
        part = slice(node.head * model.head_dim, (node.head + 1) * model.head_dim) if name[0] == "h" else slice(None)
        for i, (p, there) in enumerate(zip(SOME, donors, strict=True)):
            at = [t for t, n in enumerate(there.position_BT[0].tolist()) if NAMES.names[n] == node.position]

            def value(step, site=site, at=at, part=part, there=there, p=p):
                def edit(x):
                    x = x.clone()
                    x[:, at, part] += step * (there.values[site][:, at, part] - x[:, at, part])
                    return x

                out = model.forward(torch.tensor([p.clean_tokens]), edits={site: edit})
                return float(contrasts(out.logits, [Contrast.of_pair(p)])[0])

            slope = (value(1e-5) - value(-1e-5)) / 2e-5
            assert float(predicted[i, number]) == pytest.approx(slope, rel=1e-5, abs=1e-9)
    assert predicted.abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3", "granite"])
def test_relevance_is_conserved_down_to_the_embeddings(family):
    """Without biases the frozen model is linear: embeddings times their gradient are the value, before a soft cap."""
    model = tiny_model(family)
    model.final_softcap = None
    for p in SOME:
        tokens, of_row = torch.tensor([p.clean_tokens]), [Contrast.of_pair(p)]
        x = model.forward(tokens, capture=[INPUTS]).activations[INPUTS]
        with relevance_rules(model, tokens):
            gradients = contrast_gradients(model, tokens, of_row, [INPUTS])
        torch.testing.assert_close(gradients.value_B, clean_values(model, [p]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close((x * gradients.at[INPUTS]).sum()[None], gradients.value_B, rtol=1e-8, atol=1e-9)
    assert not model.blocks[0].mlp_down._forward_pre_hooks and not model.final_norm._forward_hooks


def test_relp_refuses_mixtures_of_experts():
    model = tiny_model("mixtral")
    with pytest.raises(MechstudyError, match="mixture of experts"):
        predict_effects(model, Components(model, NAMES), SOME, method="relp")


def test_a_node_that_is_the_same_in_both_prompts_has_no_effect_at_all():
    """Whatever the batches and the machine; in float32, where another shape would leave its rounding."""
    model = tiny_model(dtype="float32")
    some = [p.model_copy(update={"positions": {"first": 0, **p.positions}}) for p in SOME]
    nodes = Components(model, NamedPositions.of(some))
    before = [i for i, node in enumerate(nodes.nodes) if node.position == "first"]
    assert before
    for batch_tokens in (20, 75, 4096):
        effects_PN = measure_effects(model, nodes, some, batch_tokens=batch_tokens).effects_PN
        assert not effects_PN[:, before].any() and effects_PN.abs().max() > 0.01


def test_a_corrupted_prompt_may_differ_from_its_first_other_token_on():
    def may_differ(clean, corrupted, at):
        return AlignedPrompt("p", clean, ("other",) * len(clean), corrupted, at).may_differ

    assert may_differ((5, 6, 7, 8), (5, 6, 9, 8), (0, 1, 2, 3)) == (False, False, True, True)
    assert may_differ((5, 6, 7), (5, 6, 7), (0, 1, 2)) == (False, False, False)
    assert may_differ((5, 6, 7, 8), (5, 6, 8), (0, 2, None, 2)) == (False, True, False, True)
