"""Boolean MLPs: training, and circuits enumerated a second time by other means."""

from itertools import product

import pytest
import torch

from mechstudy.behaviours.scoring import score_pairs
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site
from mechstudy.referee.boolean_mlps import FUNCTIONS, boolean_mlp, truth_table


@pytest.fixture(scope="module", params=FUNCTIONS)
def circuit(request):
    return boolean_mlp(request.param)


def test_the_model_computes_the_function(circuit):
    assert all(score.correct for score in score_pairs(circuit.model, circuit.train))
    function = circuit.name.removeprefix("boolean_")
    n_true = int(truth_table(function)[1].sum())
    rows = 2 ** FUNCTIONS[function][0]
    assert len(circuit.train) == 2 * n_true * (rows - n_true), "every two inputs of different value, in both orders"


def test_circuits_are_those_of_the_linear_map_behind_the_neurons(circuit):
    """Behind the neurons the model is linear but for its norm: keeping some adds up by hand."""
    model, site = circuit.model, Site("mlp_act", 0)

    def at(rows, sites):
        return model.forward(torch.tensor(rows), capture=sites, logits_at=None).activations

    sites = [site, Site("resid_post", 0), Site("mlp_out", 0)]
    clean = at([p.clean_tokens for p in circuit.train], sites)
    corrupted = at([p.corrupted_tokens for p in circuit.train], [site])[site][:, -1]
    own, resid = clean[site][:, -1], (clean[Site("resid_post", 0)] - clean[Site("mlp_out", 0)])[:, -1]
    W = model.unembedding.weight
    reader = torch.stack([W[p.answer_tokens[0]] - W[p.wrong_tokens[0]] for p in circuit.train])
    down = model.blocks[0].mlp_down.weight  # [neurons, d]
    share = reader @ down.T
    rest = (resid * reader).sum(1)
    whole = float((rest + (own * share).sum(1)).mean())
    valid = set()
    for kept in product((False, True), repeat=own.shape[1]):
        mixed = torch.where(torch.tensor(kept), own, corrupted)
        if bool((rest + (mixed * share).sum(1) > 1e-3 * whole).all()):
            valid.add(frozenset(i for i, k in enumerate(kept) if k))
    minimal = {one for one in valid if not any(one - {i} in valid for i in one)}
    minimal = {one for one in minimal if not any(other < one for other in valid)}
    assert {frozenset(node.feature for node in one) for one in circuit.circuits} == minimal
    assert len(minimal) >= 1


def test_neurons_without_a_task_are_in_no_circuit(circuit):
    assert {node.feature for node in circuit.nodes} <= set(range(8))
    assert len(circuit.universe.nodes) == 10


def test_some_function_has_several_circuits():
    assert len(boolean_mlp("and_or").circuits) + len(boolean_mlp("majority3").circuits) > 2


def test_an_enumerated_circuit_has_no_other_check(circuit):
    with pytest.raises(MechstudyError, match="were found by keeping each alone"):
        circuit.check()


def test_unknown_functions_are_refused():
    with pytest.raises(MechstudyError, match="no function 'nand'"):
        boolean_mlp("nand")
