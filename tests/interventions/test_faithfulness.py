"""Faithfulness curves: sizes, areas, intervals."""

import numpy as np
import pytest
import torch

from mechstudy.circuits.components import Components
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.effects_table import ranked
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.core.errors import MechstudyError
from mechstudy.interventions import faithfulness as curves
from mechstudy.interventions.faithfulness import circuit_sizes, faithfulness_curve, first_kept
from tests.support.interventions_world import pairs
from tests.support.tiny import tiny_model

SOME = pairs(6, lengths=(7,))


MODEL = tiny_model()
NAMES = NamedPositions.of(SOME)


class World:
    """Nodes whose kept number k gives a metric of choice on every prompt."""

    reads = writes = ()
    positions = NAMES

    def __init__(self, n):
        self.nodes = tuple(range(n))
        self.slices = {}

    def values(self, activations):
        return {}

    def edits(self, share_RN, donors, sites=None):
        return {}


def of_order(world, order, **options):
    return faithfulness_curve(MODEL, SOME, world, order, DonorSource(MODEL, [world], "zero", NAMES), **options)


def curve_of(monkeypatch, n, value, **options):
    def values(model, pairs, nodes, keep_CN, replacements, **_):
        kept = keep_CN.sum(1).double()[:, None]
        return torch.cat([value(kept, number).double() for number in range(len(pairs))], 1)

    monkeypatch.setattr(curves, "keep_only_values", values)
    return of_order(World(n), list(range(n)), **options)


def test_sizes_are_fractions_rounded_down():
    assert circuit_sizes(1500) == [1, 3, 7, 15, 30, 75, 150, 300, 750, 1500]
    assert circuit_sizes(300)[:4] == [0, 0, 1, 3]
    assert circuit_sizes(10, (0.3, 0.7)) == [3, 7]  # though .7 x 10 is a rounding below 7


def test_the_first_nodes_of_an_order_are_kept():
    assert first_kept([2, 0, 1], [0, 1, 3]).tolist() == [[False] * 3, [False, False, True], [True] * 3]


def test_areas_are_those_that_mib_states(monkeypatch):
    """f = 0 up to half of the nodes and 1 with all: CPR .25, CMD .749."""
    curve = curve_of(monkeypatch, 1000, lambda kept, i: 2.0 * (kept == 1000) + 5 + i)
    assert curve.cpr.value == pytest.approx(0.25) and curve.cmd.value == pytest.approx(0.749)
    assert curve.at(500).value == 0 and curve.at(1000).value == 1


def test_a_perfect_curve_has_no_distance_and_an_overshoot_counts(monkeypatch):
    perfect = curve_of(monkeypatch, 1000, lambda kept, i: (kept > 0).double())
    assert perfect.cmd.value == pytest.approx(0) and perfect.cpr.value == pytest.approx(0.999)
    over = curve_of(monkeypatch, 1000, lambda kept, i: (kept > 0) * torch.where(kept == 1000, 1.0, 3.0))
    assert over.cmd.value == pytest.approx(2 * 0.499 + 0.5 * 2 * 0.5)


def test_f_is_a_ratio_of_means_and_its_interval_covers_it(monkeypatch):
    shares = np.array([0.1, 0.9, 0.5, 0.4, 0.6, 0.5])
    curve = curve_of(
        monkeypatch,
        100,
        lambda kept, i: (i + 1) * torch.where(kept == 100, 1.0, torch.where(kept > 0, float(shares[i]), 0.0)),
        sizes=[7],
    )
    expected = (shares * np.arange(1, 7)).sum() / 21
    f = curve.at(7)
    assert f.value == pytest.approx(expected) and f.ci[0] < expected < f.ci[1]
    assert curve.cmd.ci[0] < curve.cmd.value < curve.cmd.ci[1]
    assert curve.frame.filter(k=7)["f"].item() == pytest.approx(expected) and "CMD" in repr(curve)


def test_a_behaviour_that_the_nodes_do_not_carry_has_no_ratio(monkeypatch):
    curve = curve_of(monkeypatch, 100, lambda kept, i: torch.ones_like(kept))
    assert curve.cmd.value is None and curve.at(100).value is None and "undefined" in repr(curve)


def test_an_order_that_leaves_nodes_out_is_refused():
    world = World(5)
    with pytest.raises(MechstudyError, match="not one of the 5 nodes"):
        of_order(world, [0, 1, 1, 2, 3])
    with pytest.raises(MechstudyError, match="cannot have size 6"):
        of_order(world, [0, 1, 2, 3, 4], sizes=[6])


def test_ranking_by_size_and_by_support():
    effects = torch.tensor([0.5, -1.0, -0.2, 1.0], dtype=torch.float64)
    assert ranked(effects) == [1, 3, 0, 2]
    assert ranked(effects, "support") == [1, 2, 0, 3]
    assert ranked(effects, "balance") == [3, 1, 0, 2]
    other = torch.tensor([0.5, -1.0, -0.6, 0.1], dtype=torch.float64)  # together -1
    assert ranked(other, "balance") == [1, 0, 2, 3]  # sums -1, -.5, -1.1, -1
    with pytest.raises(MechstudyError, match="cannot be ranked"):
        ranked(effects, "size")


def test_the_ends_of_a_real_curve_are_all_and_none():
    nodes = Components(MODEL, NAMES)
    curve = of_order(nodes, list(range(len(nodes.nodes))), sizes=[4], n_resamples=50)
    assert curve.f[0].value == 0 and curve.f[-1].value == 1 and 4 in curve.sizes
    assert curve.values_KP.shape == (len(curve.sizes), len(SOME))
