"""Studies in which there is nothing to find, and the rates of wrong verdicts."""

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import numpy_generator
from mechstudy.referee.hosts import random_host
from mechstudy.referee.nulls import CONFIG, KINDS, NULLS, TRUE, Pair, null_studies, rates
from mechstudy.verdict.verify import verify


@pytest.fixture(scope="module")
def pair():
    return Pair.of_seed(random_host(0), 0)


def spoilt(pair, kind):
    return NULLS[kind](pair, numpy_generator(0, "nulls", kind))


def judged(case):
    config = CONFIG.model_copy(update={"resamples": 20, "bootstrap": 200, "n_random": 2})
    return verify(case.model, case.bases, case.train, case.test, config, behaviour="mine", others={"other": case.other})


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


def test_a_true_circuit_holds_and_spares_the_other(pair):
    found = judged(pair.whole)
    assert found.outcome == "holds", found
    true = {str(node) for node in pair.first.nodes}
    assert true <= set(found.members["node"])
    lost = {name: e.value for name, e in found.elsewhere.lost.items()}
    assert lost["mine"] > 0.9 and abs(lost["other"]) < 0.1


@pytest.mark.parametrize("kind", NULLS)
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
    assert spoilt(pair, "another behaviour").test == pair.second.test


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
