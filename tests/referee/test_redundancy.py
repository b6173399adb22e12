"""Circuits that single ablations misjudge, and what a verdict sees of them."""

import pytest
import torch

from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.interventions.node_patching import measure_effects
from mechstudy.referee import redundancy
from mechstudy.verdict import VerdictConfig, verify
from mechstudy.verdict.shares import BACKUPS, BOTH, CUT
from tests.support.thorough import few

CONFIG = VerdictConfig(n_discovery=12, n_samples=12, n_random=2, resamples=20, bootstrap=200)


@pytest.mark.parametrize("seed", few([0, 1]))
def test_a_backup_is_missed_by_single_ablation_and_found_by_co_ablation(seed):
    circuit = redundancy.backup(seed)
    [number] = circuit.universe.index(["head.3.2@last"])
    single = measure_effects(circuit.model, circuit.universe, circuit.test).effects
    assert abs(single[number]) < 1e-3 * abs(single.min())
    found = verify(circuit.model, {}, circuit.train, circuit.test, CONFIG)
    assert found.members["node"].to_list() == ["head.1.1@last"]
    assert [str(found.nodes[i]) for i in found.backups.nodes] == ["head.3.2@last"]
    lost = {name: found.primary.lost(name).value for name in (CUT, BACKUPS, BOTH)}
    assert lost == pytest.approx({CUT: 0.5, BACKUPS: 0, BOTH: 1}, abs=1e-3)


@pytest.mark.parametrize("seed", few([0, 1]))
def test_an_adversary_passes_the_true_circuit_and_fails_a_part_of_equal_f(seed):
    circuit = redundancy.opposed(seed)
    effects = predict_effects(circuit.model, circuit.universe, circuit.train, method="ig_nodes").effects
    true_N = circuit.members()
    part_N = torch.zeros_like(true_N)
    part_N[circuit.universe.index(["head.0.3@last"])] = True
    ends = [torch.ones_like(true_N), torch.zeros_like(true_N)]
    kept = [true_N, true_N | (effects >= 0), part_N, part_N | (effects >= 0)]
    every, none, *values = circuit.kept(torch.stack([*ends, *kept])).mean(1).tolist()
    f = [(value - none) / (every - none) for value in values]
    assert f == pytest.approx([1, 1, 1, 0], abs=1e-3)


def test_a_verdict_says_that_another_choice_breaks_a_cherry_picked_circuit():
    circuit = redundancy.opposed(0)
    found = verify(circuit.model, {}, circuit.train, circuit.test, CONFIG)
    states = {criterion.name: criterion.state for criterion in found.criteria}
    assert found.circuit.size == 1 and states["sufficiency"] == "met"
    assert states["adversary"] == "not met" and found.outcome == "partly"
