"""Studies in which there is nothing to find, and the rates of wrong verdicts."""

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import numpy_generator
from mechstudy.referee import nulls
from mechstudy.referee.hosts import random_host
from mechstudy.referee.nulls import CONFIG, KINDS, NULLS, TRUE, Pair, Prompted, null_studies, rates
from mechstudy.verdict.specificity import elsewhere
from mechstudy.verdict.verify import verify
from tests.support.interventions_world import pairs
from tests.support.thorough import few
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def pair():
    return Pair.of_seed(random_host(0), 0)


def spoilt(pair, kind):
    return NULLS[kind](pair, numpy_generator(0, "nulls", kind))


def judged(case):
    config = CONFIG.model_copy(update={"resamples": 20, "bootstrap": 200, "n_random": 2})
    return verify(case.model, case.bases, case.train, case.test, config, behaviour="mine", others={"other": case.other})


@pytest.mark.slow
def test_two_circuits_share_no_component_and_both_hold(pair):
    def parts(circuit):
        return {str(node).partition("@")[0] for node in circuit.nodes}

    assert not parts(pair.first) & parts(pair.second)
    for circuit in (pair.first, pair.second):
        check = type(circuit)(
            circuit.name, "", pair.first.model, circuit.universe, circuit.circuits, circuit.train, circuit.test
        )
        every = torch.ones(1, len(circuit.universe.nodes), dtype=torch.bool)
        kept = circuit.members()[None]
        assert (check.kept(every, circuit.test) > 1).all()
        torch.testing.assert_close(
            check.kept(kept, circuit.test), check.kept(every, circuit.test), rtol=0.05, atol=0.05
        )


@pytest.mark.slow
def test_a_true_circuit_holds_and_spares_the_other(pair):
    found = judged(pair.whole)
    assert found.outcome == "holds", found
    true = {str(node) for node in pair.first.nodes}
    assert true <= set(found.members["node"])
    lost = {name: e.value for name, e in found.elsewhere.lost.items()}
    assert lost["mine"] > 0.9 and abs(lost["other"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 18, 29])
def test_of_two_circuits_each_spares_the_other(seed):
    """Planted at random directions, the second read up to .36 of the first's in these seeds."""
    pair = Pair.of_seed(random_host(seed), seed)
    tests = {"first": pair.first.test, "second": pair.second.test}
    for circuit, own in ((pair.first, "first"), (pair.second, "second")):
        lost = elsewhere(pair.first.model, list(circuit.nodes), {}, tests, n_resamples=20).lost
        for name, of in lost.items():
            assert of.value > 0.9 if name == own else abs(of.value) < 0.01, (own, name, of)


@pytest.mark.parametrize("kind", few(NULLS))
def test_nothing_holds_of_a_spoilt_study(pair, kind):
    assert judged(spoilt(pair, kind)).outcome != "holds"


def test_what_is_spoilt(pair):
    whole = pair.whole
    permuted = spoilt(pair, "permuted labels")
    exchanged = [a.answer_tokens != b.answer_tokens for a, b in zip(whole.test, permuted.test, strict=True)]
    assert 0 < sum(exchanged) < len(exchanged)
    assert all(
        {a.answer_tokens, a.wrong_tokens} == {b.answer_tokens, b.wrong_tokens}
        for a, b in zip(whole.test, permuted.test, strict=True)
    )
    assert spoilt(pair, "random weights").model is pair.host
    assert list(spoilt(pair, "random dictionaries").bases) == [
        node.layer for node in pair.first.nodes if str(node).startswith("mlp")
    ]
    assert tuple(spoilt(pair, "another behaviour").test) == tuple(pair.second.test)


def test_behaviours_are_spoilt_in_the_same_ways_as_planted_circuits():
    model = tiny_model()
    first, second = (Prompted(model, pairs(8, seed=seed), pairs(8, seed=seed + 1)) for seed in (0, 4))
    pair = Pair(tiny_model(seed=1), first, second)
    whole = pair.whole
    assert (whole.train, whole.test, whole.other) == (first.train, first.test, second.test)
    cases = {kind: spoilt(pair, kind) for kind in NULLS}
    assert cases["random weights"].model is pair.host and cases["another behaviour"].test == second.test
    renamed = [p.model_copy(update={"positions": {"elsewhere": 1, **p.positions}}) for p in second.test]
    other = spoilt(Pair(pair.host, first, Prompted(model, second.train, renamed)), "another behaviour")
    assert all("elsewhere" not in p.positions and p.positions for p in other.test)
    assert judged(other).prompts == tuple(other.test), "positions that nobody was chosen on are no obstacle"
    assert list(cases["random dictionaries"].bases) == [0]
    drawn = cases["shuffled answers"].test
    assert [p.clean_tokens for p in drawn] == [p.clean_tokens for p in first.test]
    assert [p.answer_tokens for p in drawn] != [p.answer_tokens for p in first.test]


def test_behaviours_take_turns_and_lose_their_model(monkeypatch):
    model, asked = tiny_model(), []

    def load(name, of, n, *, split, seed):
        asked.append((name, split, seed))
        return pairs(4, seed=len(asked))

    monkeypatch.setattr(nulls, "load_prompts", load)
    even, odd = (Pair.of_behaviours(model, ["a", "b"], seed) for seed in (0, 1))
    assert asked == [(name, split, seed) for seed in (0, 1) for name in "ab" for split in ("train", "test")]
    assert even.first.train == pairs(4, seed=1) and odd.first.train == pairs(4, seed=7)
    weights = [dict(m.hf.named_parameters()) for m in (model, even.host, odd.host)]
    assert len({frozenset(w) for w in weights}) == 1
    drawn = [w["model.layers.0.mlp.up_proj.weight"] for w in weights]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    assert drawn[1].dtype == model.dtype and torch.equal(weights[0]["model.norm.weight"], model.final_norm.weight)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": [TRUE], "host": tiny_model(), "behaviours": ["a", "b"]}, "nobody knows the true circuits"),
        ({"behaviours": ["subject_verb_agreement"] * 2}, "behaviours are those of a model"),
        ({"behaviours": ["subject_verb_agreement"], "host": tiny_model()}, "two behaviours make a study, not 1"),
    ],
)
def test_behaviours_need_a_model_and_are_two(options, said):
    with pytest.raises(MechstudyError, match=said):
        list(null_studies(**{"kinds": [], "n": 1} | options))


def test_rates_have_exact_intervals():
    def row(kind, outcome):
        return {"kind": kind, "outcome": outcome}

    kind = next(iter(NULLS))
    rows = [row(kind, "not shown")] * 59 + [row(kind, "holds")] + [row(TRUE, "holds")] * 19 + [row(TRUE, "partly")]
    of_kind, null, true = rates(rows)
    assert (of_kind["kind"], null["kind"], true["kind"]) == (kind, "all null studies", TRUE)
    assert (null["n"], null["holds"], null["not shown"]) == (60, 1, 59)
    assert (null["low"], null["high"]) == pytest.approx((0.00042, 0.0894), abs=1e-4)  # Clopper-Pearson, 1 of 60
    assert (true["low"], true["high"]) == pytest.approx((0.7513, 0.9987), abs=1e-4)  # 19 of 20


def test_unknown_kinds_are_refused():
    with pytest.raises(MechstudyError, match="no kind of study 'random weigths'") as caught:
        list(null_studies(["random weigths"], 1))
    assert "random weights" in str(caught.value)


def test_the_command_names_the_kinds():
    from mechstudy.cli.bench import STUDIES

    assert STUDIES == KINDS, "help imports nothing heavy, so it has names of its own"
