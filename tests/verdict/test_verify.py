"""Verdicts on tiny models: what must be exact, and what is refused."""

import json

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.mean_changes import mean_changes
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.circuits.recording import Recording
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.interventions.features import FeatureAt
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.interventions.node_universe import node_set
from mechstudy.verdict import Verdict, VerdictConfig, verify
from mechstudy.verdict.shares import ADVERSARY, ALL, BOTH, CUT, KEPT, NONE, WITHOUT_ERRORS
from mechstudy.verdict.specificity import elsewhere
from mechstudy.verdict.variants import Variant
from tests.support.interventions_world import pairs, transcoders
from tests.support.tiny import tiny_model

MODEL = tiny_model()
TRAIN, TEST = pairs(8), pairs(8, seed=1)
CONFIG = VerdictConfig(n_discovery=8, n_samples=8, steps=3, n_random=2, resamples=20, bootstrap=200)
OTHERS = {"other": pairs(6, seed=2)}
TEXTS = [list(range(1, 12)), list(range(20, 31))]


@pytest.fixture(scope="module")
def found() -> Verdict:
    return verify(
        MODEL, transcoders(MODEL), TRAIN, TEST, CONFIG, behaviour="mine", others=OTHERS, texts=TEXTS, batch_tokens=64
    )


def test_all_nodes_carry_all_and_none_carry_nothing(found):
    for shares in found.shares.values():
        assert shares.f(ALL).value == pytest.approx(1) and shares.f(NONE).value == pytest.approx(0)
    assert set(found.shares) == {"corrupted", "mean", "resample"}


def test_the_record_is_plain_json_and_complete(found):
    record = json.loads(json.dumps(found.record, allow_nan=False))
    assert [c["name"] for c in record["criteria"]] == [
        "behaviour", "sufficiency", "necessity", "rivals", "adversary", "explained", "variants", "controls",
        "stability", "robustness", "specificity",
    ]  # fmt: skip
    assert all(0 < part["p"] <= part["q"] <= 1 for part in record["parts"])
    assert 0 <= record["equivalence"]["above"] <= 1 and 0 < record["equivalence"]["p"] <= 1
    assert record["outcome"] in ("holds", "partly", "not shown", "refuted")
    assert len(record["members"]) == record["size"] == found.circuit.size
    assert record["curve"][-1]["f"] == pytest.approx(1) and record["curve"][-1]["k"] == record["n_nodes"]
    assert {row["replaced_by"] for row in record["specifications"]} == {"corrupted", "mean", "resample"}
    assert {row["template"] for row in record["specifications"]} == {"all", "t0", "t1", "t2"}
    assert set(record["elsewhere"]["behaviours"]) == {"mine", "other"} and record["elsewhere"]["text_kl"] > 0
    assert "sufficiency" in repr(found)
    assert found.frame["name"].to_list() == [c["name"] for c in record["criteria"]]


def test_sufficiency_and_necessity_are_what_keep_only_runs_measure(found):
    bases, names = transcoders(MODEL), NamedPositions.of([*TRAIN, *TEST])
    features = [node for node in found.nodes if str(node).startswith("f.")]
    nodes = node_set(MODEL, names, bases, features, errors=True)
    assert nodes.nodes == found.nodes
    kept = found.circuit.kept()
    adversary = kept | (found.effects >= 0)
    no_errors = kept & torch.tensor([not str(node).startswith("error") for node in found.nodes])
    masks = torch.stack([torch.ones_like(kept), torch.zeros_like(kept), kept, ~kept, adversary, no_errors])
    values = keep_only_values(MODEL, TEST, nodes, masks, DonorSource(MODEL, [nodes], "corrupted", names))
    for name, expected in zip((ALL, NONE, KEPT, CUT, ADVERSARY, WITHOUT_ERRORS), values, strict=True):
        torch.testing.assert_close(found.primary.values[name], expected, rtol=1e-10, atol=1e-10)
    every, none, of_kept, of_cut, *_ = values.mean(1).tolist()
    criteria = {c.name: c.estimate.value for c in found.criteria}
    assert criteria["behaviour"] == pytest.approx(every)
    assert criteria["sufficiency"] == pytest.approx((of_kept - none) / (every - none))
    assert criteria["necessity"] == pytest.approx((every - of_cut) / (every - none))


def test_rivals_of_equal_size_are_first_by_other_methods(found):
    names = NamedPositions.of([*TRAIN, *TEST])
    nodes = node_set(MODEL, names, transcoders(MODEL), [n for n in found.nodes if str(n)[0] == "f"], errors=True)
    k, n = found.circuit.size, len(nodes.nodes)
    recording = Recording(MODEL, nodes, TRAIN, "corrupted")
    orders = {
        "gradient alone": predict_effects(MODEL, nodes, TRAIN, method="eap").order("balance"),
        "EAP-IG": predict_effects(MODEL, nodes, TRAIN, method="eap_ig_inputs", steps=3).order("balance"),
        "top activations": mean_changes(MODEL, nodes, recording, to_zero=True).argsort(descending=True).tolist(),
        "difference of means": mean_changes(MODEL, nodes, recording).argsort(descending=True).tolist(),
    }
    masks = torch.zeros(len(orders), n, dtype=torch.bool)
    for mask, order in zip(masks, orders.values(), strict=True):
        mask[order[:k]] = True
    values = keep_only_values(MODEL, TEST, nodes, masks, DonorSource(MODEL, [nodes], "corrupted", names))
    for name, expected in zip(orders, values, strict=True):
        torch.testing.assert_close(found.primary.values[name], expected, rtol=1e-10, atol=1e-10)
    rivals = {row["circuit"]: row for row in found.rivals.to_dicts()}
    assert list(rivals) == ["circuit", "random 0", "random 1", *orders]
    for name in list(rivals)[1:]:
        row = rivals[name]
        assert row["ahead"] == pytest.approx(rivals["circuit"]["f"] - row["f"])
        assert row["low"] <= row["ahead"] <= row["high"]


def permuted(bases, seed=0):
    """The same dictionaries with their features in another order."""
    other = {}
    for layer, one in bases.items():
        order = torch.randperm(one.cfg.d_sae, generator=torch.Generator().manual_seed(seed))
        weights = {"W_enc": one.W_enc[:, order], "b_enc": one.b_enc[order], "W_dec": one.W_dec[order]}
        other[layer] = Dictionary(one.cfg, b_dec=one.b_dec, W_skip=one.W_skip, **weights)
    return other


def shrunk(bases, factor):
    return {
        layer: Dictionary(one.cfg, W_enc=one.W_enc, b_enc=one.b_enc, W_dec=factor * one.W_dec, b_dec=one.b_dec)
        for layer, one in bases.items()
    }


def test_variants_are_chosen_and_judged_as_the_circuit_is():
    bases = transcoders(MODEL)
    variants = {
        "same": Variant(permuted(bases)),
        "shrunk": Variant(shrunk(bases, 0.01), frozen=True),
        "other": Variant(transcoders(MODEL, seed=1)),
    }
    found = verify(MODEL, bases, TRAIN, TEST, CONFIG, variants=variants, batch_tokens=64)
    same, little, other = found.variants
    own = {c.name: c.estimate for c in found.criteria}
    n_features = sum(str(found.nodes[i]).startswith("f.") for i in found.circuit.members)
    assert (same.size, same.n_nodes) == (found.circuit.size, len(found.nodes))
    assert (same.features, same.features_again) == (n_features, n_features)
    assert same.others == same.others_again == found.circuit.size - n_features
    assert same.f.value == pytest.approx(own["sufficiency"].value, rel=1e-9)
    assert same.at_size.value == pytest.approx(same.f.value)
    assert same.explained.value == pytest.approx(own["explained"].value, rel=1e-9)
    assert same.less.value == pytest.approx(0, abs=1e-9)
    alone = verify(MODEL, transcoders(MODEL, seed=1), TRAIN, TEST, CONFIG, batch_tokens=64)
    assert (other.size, other.n_nodes) == (alone.circuit.size, len(alone.nodes))
    assert other.f.value == pytest.approx(alone.primary.f(KEPT).value, rel=1e-9)
    assert other.features_again < n_features
    assert same.explained.ci[0] < 0.5 and other.explained.ci[0] < 0.5, "both open: the least is shown"
    assert own["variants"].value == pytest.approx(min(same.explained.value, other.explained.value))
    assert own["controls"].value == pytest.approx(own["explained"].value - little.explained.value)
    assert little.less.ci[0] <= little.less.value <= little.less.ci[1]
    record = json.loads(json.dumps(found.record, allow_nan=False))["variants"]
    assert [(row["name"], row["frozen"]) for row in record] == [("same", False), ("shrunk", True), ("other", False)]


def test_without_other_dictionaries_the_verdict_does_not_ask_for_them(found):
    states = {c.name: (c.state, c.missing) for c in found.criteria}
    assert states["variants"] == ("not measured", "there are no other dictionaries of every layer")
    assert states["controls"] == ("not measured", "there are no frozen dictionaries of every layer")
    assert "variants" not in found.why and "controls" not in found.why


def test_replacing_circuit_and_backups_is_replacing_both(found):
    names = NamedPositions.of([*TRAIN, *TEST])
    nodes = node_set(MODEL, names, transcoders(MODEL), [n for n in found.nodes if str(n)[0] == "f"], errors=True)
    kept = ~found.circuit.kept()
    kept[list(found.backups.nodes)] = False
    expected = keep_only_values(MODEL, TEST, nodes, kept[None], DonorSource(MODEL, [nodes], "corrupted", names))[0]
    torch.testing.assert_close(found.primary.values[BOTH], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["corrupted", "mean"])
def test_effects_beside_replaced_nodes_divide_what_is_left(kind):
    """Integrated gradients from the run with some nodes replaced to that with all add up to the difference.

    Of heads and MLPs, which are smooth: a feature that jumps while its replacement is held leaves a gap.
    """
    names = NamedPositions.of(TRAIN)
    nodes = node_set(MODEL, names)
    some = list(range(0, len(nodes.nodes), 7))
    options = {"replace_by": kind, "discovery": TRAIN, "given": some}
    effects = predict_effects(MODEL, nodes, TRAIN, method="ig_nodes", steps=20, **options)
    kept = torch.ones(2, len(nodes.nodes), dtype=torch.bool)
    kept[0, some], kept[1] = False, False
    values = keep_only_values(MODEL, TRAIN, nodes, kept, DonorSource(MODEL, [nodes], kind, names, TRAIN))
    change = values[1] - values[0]
    assert (effects.effects_PN.sum(1) - change).abs().sum() < 1e-3 * change.abs().sum()
    assert effects.effects_PN[:, some].eq(0).all()
    torch.testing.assert_close(effects.gaps[0].change_P, change, rtol=1e-9, atol=1e-9)


def test_first_order_effects_beside_replaced_nodes_are_derivatives():
    names = NamedPositions.of(TRAIN)
    nodes = node_set(MODEL, names, transcoders(MODEL), errors=True)
    some = [3, 40, 90]
    effects = predict_effects(MODEL, nodes, TRAIN, method="eap", given=some)
    assert effects.effects_PN[:, some].eq(0).all()
    whole = predict_effects(MODEL, nodes, TRAIN, method="eap")
    assert not torch.allclose(effects.effects_PN, whole.effects_PN)
    donors = DonorSource(MODEL, [nodes], "corrupted", names)
    strongest = int(effects.effects.abs().argmax())
    pair = TRAIN[0]
    step, found = 1e-6, []
    for share in (0.0, step):
        share_RN = torch.zeros(1, len(nodes.nodes), dtype=torch.float64)
        share_RN[0, some], share_RN[0, strongest] = 1.0, share
        edits = nodes.edits(share_RN, donors.donors([pair]))
        logits = MODEL.forward(torch.tensor([pair.clean_tokens]), edits=edits).logits
        found.append(float(contrasts(logits, [Contrast.of_pair(pair)])[0]))
    slope = (found[1] - found[0]) / step
    assert float(effects.effects_PN[0, strongest]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_replacing_components_that_do_not_exist_elsewhere_loses_nothing():
    """A circuit of one feature that is active nowhere changes no behaviour and no text."""
    bases = transcoders(MODEL)
    bases[2].W_enc.data[:, 0], bases[2].b_enc.data[0] = 0.0, -1.0
    away = elsewhere(MODEL, [FeatureAt(2, 0, "last")], bases, {"mine": TEST, **OTHERS}, texts=TEXTS, n_resamples=100)
    assert [e.value for e in away.lost.values()] == [0.0, 0.0]
    assert away.text_kl == 0.0


def test_prompts_of_both_splits_are_refused():
    with pytest.raises(MechstudyError, match="1 test prompts are train prompts too"):
        verify(MODEL, {}, TRAIN, [*TEST[:3], TRAIN[0]], CONFIG)


def test_circuits_of_heads_and_mlps_need_no_dictionary():
    found = verify(MODEL, {}, TRAIN, TEST, CONFIG.model_copy(update={"n_discovery": 50}))
    assert (found.record["n_train"], found.record["n_test"]) == (len(TRAIN), len(TEST))
    assert {str(node).partition(".")[0] for node in found.nodes} == {"head", "mlp"}
    assert found.elsewhere is None
    assert next(c for c in found.criteria if c.name == "explained").state == "not measured"
    assert next(c for c in found.criteria if c.name == "specificity").state == "not measured"


def test_without_corrupted_prompts_others_are_replaced_by_means():
    bare = [p.model_copy(update={"corrupted": "", "corrupted_tokens": ()}) for p in (*TRAIN, *TEST)]
    found = verify(MODEL, {}, bare[: len(TRAIN)], bare[len(TRAIN) :], CONFIG)
    assert found.replaced_by == "mean" and set(found.shares) == {"mean", "resample"}
