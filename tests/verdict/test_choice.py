"""Circuits that are chosen, their rivals and their parts."""

from collections import Counter

import pytest
import torch

from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.effects_table import EffectsTable, ranked
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.interventions.faithfulness import MIB_FRACTIONS, circuit_sizes, first_kept
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.interventions.node_universe import node_set
from mechstudy.verdict.choice import BETWEEN, choose, groups_of, kind_of, random_circuits, sizes_between
from tests.support.interventions_world import pairs, transcoders
from tests.support.tiny import tiny_model

MODEL = tiny_model()
SOME = pairs(6)
NAMES = NamedPositions.of(SOME)
NODES = node_set(MODEL, NAMES, transcoders(MODEL), errors=True)


def effects_of(values):
    effects = torch.as_tensor(values, dtype=torch.float64)
    return EffectsTable(NODES.nodes, effects.expand(len(SOME), -1), ("p",) * len(SOME), "eap", "corrupted", NAMES)


@pytest.mark.parametrize("by", ["balance", "magnitude", "support"])
def test_the_first_nodes_of_a_ranking_are_those_of_the_whole_ranking(by):
    values = torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = ranked(values, by)
    assert sorted(whole) == list(range(200))
    for k in (0, 1, 17, 199, 500):
        assert ranked(values, by, k) == whole[:k]


def test_the_smallest_circuit_that_reaches_the_aim_is_chosen():
    effects = predict_effects(MODEL, NODES, SOME, method="ig_nodes", steps=3)
    donors = DonorSource(MODEL, [NODES], "corrupted", NAMES)
    order, n = effects.order("balance"), len(NODES.nodes)
    sizes = [k for k in circuit_sizes(n, MIB_FRACTIONS) if 0 < k < n]
    values = keep_only_values(MODEL, SOME, NODES, first_kept(order, [0, *sizes, n]), donors).mean(1)
    shares = {k: float((v - values[0]) / (values[-1] - values[0])) for k, v in zip(sizes, values[1:-1], strict=True)}
    assert len(set(shares.values())) > 4
    for aim in (0.2, 0.5, 0.9, 0.99):
        expected = next((k for k in sizes if shares[k] >= aim), None)
        if expected is not None:
            between = sizes_between(max((k for k in sizes if k < expected), default=0), expected)
            more = keep_only_values(MODEL, SOME, NODES, first_kept(order, between), donors).mean(1) if between else []
            found_there = {
                k: float((v - values[0]) / (values[-1] - values[0])) for k, v in zip(between, more, strict=True)
            }
            least = next((k for k in between if found_there[k] >= aim), expected)
            found = choose(MODEL, NODES, effects, SOME, donors, aim=aim)
            assert (found.size, found.reached) == (least, pytest.approx((shares | found_there)[least]))
            assert found.members == tuple(order[:least])
            assert found.kept().nonzero().flatten().tolist() == sorted(found.members)
    best = choose(MODEL, NODES, effects, SOME, donors, aim=100.0)
    assert best.reached == pytest.approx(max(shares[k] for k in sizes if k <= n // 10))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 4), (2, 9), (6, 12), (6, 60), (0, 14), (14, 7000)])
def test_sizes_between_two_others(low, high):
    sizes = sizes_between(low, high)
    assert sizes == sorted(set(sizes)) and len(sizes) <= BETWEEN
    assert all(low < k < high for k in sizes)
    assert sizes == list(range(low + 1, high)) or len(sizes) >= 3


def test_without_an_effect_there_is_no_share():
    same = [p.model_copy(update={"corrupted_tokens": p.clean_tokens}) for p in SOME]
    donors = DonorSource(MODEL, [NODES], "corrupted", NAMES)
    assert choose(MODEL, NODES, effects_of([0.0] * len(NODES.nodes)), same, donors).reached is None


def test_random_circuits_have_the_kinds_and_layers_of_the_circuit():
    generator = torch.Generator().manual_seed(0)
    members = torch.randperm(len(NODES.nodes), generator=generator)[:30].tolist()

    def places(numbers):
        return Counter((kind_of(NODES.nodes[i]), NODES.nodes[i].layer) for i in numbers)

    drawn = [kept.nonzero().flatten().tolist() for kept in random_circuits(NODES, members, 4, seed=0)]
    assert len({tuple(circuit) for circuit in drawn}) == 4
    few = {place for place, n in places(range(len(NODES.nodes))).items() if n < 2 * places(members)[place]}
    for circuit in drawn:
        assert places(circuit) == places(members)
        both = {(kind_of(NODES.nodes[i]), NODES.nodes[i].layer) for i in set(circuit) & set(members)}
        assert both <= few
    again = [kept.nonzero().flatten().tolist() for kept in random_circuits(NODES, members, 4, seed=0)]
    assert again == drawn


@pytest.mark.parametrize("n", [1, 3, 8, 30])
def test_groups_divide_the_members(n):
    members = torch.randperm(len(NODES.nodes), generator=torch.Generator().manual_seed(n))[:n].tolist()
    groups = groups_of(NODES, members)
    assert sorted(i for group in groups.values() for i in group) == sorted(members)
    for name, group in groups.items():
        kinds = {kind_of(NODES.nodes[i]) for i in group}
        assert len(kinds) == 1
        layers = [NODES.nodes[i].layer for i in group]
        low, _, high = name.split()[-1].partition("-")
        assert (min(layers), max(layers)) == (int(low), int(high or low))
