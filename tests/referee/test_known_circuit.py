"""Known circuits: a claim that is wrong does not pass its test."""

from dataclasses import replace

import pytest

from mechstudy.circuits.components import HeadAt, MlpAt
from mechstudy.core.errors import MechstudyError
from mechstudy.referee import programs
from mechstudy.referee.known_circuit import EdgeAt


@pytest.fixture(scope="module")
def circuit():
    return programs.ioi_one_layer(0)


def test_the_circuit_holds(circuit):
    check = circuit.check(circuit.test[:3])
    assert check.holds and check.kept < 1e-3 and check.removed > 0.1


def test_a_missing_node_is_found(circuit):
    wrong = replace(circuit, circuits=(frozenset({HeadAt(0, 0, "last")}),))
    check = wrong.check(circuit.test[:3], edges=False)
    assert not check.holds and check.kept > 0.1


@pytest.mark.parametrize("node", (HeadAt(0, 2, "last"), MlpAt(0, "last"), HeadAt(0, 0, "s2")))
def test_a_node_too_many_is_found(circuit, node):
    wrong = replace(circuit, circuits=(circuit.nodes | {node},))
    check = wrong.check(circuit.test[:3], edges=False)
    assert not check.holds and check.removed < 1e-3


def test_wrong_edges_are_found(circuit):
    missing = replace(circuit, edges=frozenset({EdgeAt("head.0.0", "logits", "last")}))
    assert not missing.check(circuit.test[:3]).holds
    too_many = replace(circuit, edges=circuit.edges | {EdgeAt("head.0.0", "mlp.0", "last")})
    check = too_many.check(circuit.test[:3])
    assert check.edge_inside < 1e-3 and not check.holds


def test_nodes_and_edges_that_do_not_exist_are_refused(circuit):
    with pytest.raises(MechstudyError, match=r"head\.9\.0@last is among the true nodes"):
        replace(circuit, circuits=(frozenset({HeadAt(9, 0, "last")}),))
    with pytest.raises(MechstudyError, match=r"head\.0\.0 -> head\.0\.1@last is not among the edges"):
        replace(circuit, edges=frozenset({EdgeAt("head.0.0", "head.0.1", "last")})).check(circuit.test[:2])


def test_circuits_hold_within_their_own_tolerance(circuit):
    wrong = replace(circuit, circuits=(frozenset({HeadAt(0, 0, "last")}),), edges=frozenset())
    assert not wrong.check(circuit.test[:3]).holds
    lenient = replace(wrong, tolerance=2.0).check(circuit.test[:3])
    assert lenient.holds and lenient.tolerance == 2.0
    assert circuit.tolerance == 1e-3, "of circuits that say nothing"
