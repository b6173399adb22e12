"""Circuits chosen on resampled prompts."""

import numpy as np
import pytest
import torch

from mechstudy.circuits.effects_table import EffectsTable, ranked
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.verdict.backups import MOST, backups
from mechstudy.verdict.stability import central, half, stability

N, K, P = 60, 12, 20
CLUSTERS = [f"c{i // 2}" for i in range(P)]
TEMPLATES = [f"t{i % 2}" for i in range(P)]


def table(effects_PN, method="eap"):
    return EffectsTable(
        tuple(range(effects_PN.shape[1])), effects_PN, tuple(map(str, range(len(effects_PN)))), method, "corrupted",
        NamedPositions.whole(),
    )  # fmt: skip


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def judged(effects_PN, ranking="magnitude", **options):
    effects = table(effects_PN)
    members = ranked(effects.effects, ranking, K)
    return members, stability(
        effects, members, CLUSTERS, TEMPLATES, ranking=ranking, n_resamples=100, seed=0, **options
    )


@pytest.mark.parametrize("ranking", ["balance", "magnitude", "support"])
def test_equal_prompts_always_choose_the_same(ranking):
    _, found = judged(draw(1, N).expand(P, N).contiguous(), ranking)
    assert found.jaccard.value == 1.0 and found.frequency.eq(1).all()
    assert found.counts == {"core": K, "contingent": 0, "noise": 0}
    assert found.by_template == {"t0": 1.0, "t1": 1.0}


def test_noise_chooses_something_else_each_time():
    _, found = judged(draw(P, N))
    assert found.jaccard.value < 0.6 and found.counts["core"] < K
    assert sum(found.counts.values()) == K
    low, high = found.jaccard.ci
    assert low < found.jaccard.value < high


def test_nodes_that_one_cluster_alone_supports_are_not_core():
    effects = 0.01 * draw(P, N)
    effects[:, :6] -= 5
    effects[:2, 6:12] -= (
        100  # of the first cluster: chosen only where it is drawn, in half of all halves, by chance in some others
    )
    members, found = judged(effects)
    frequency = dict(zip(members, found.frequency.tolist(), strict=True))
    assert all(frequency[i] == 1 for i in range(6))
    assert all(0.4 < frequency[i] < 0.75 for i in range(6, 12))
    assert found.counts["core"] == 6


@pytest.mark.parametrize("n", [2, 3, 7, 10])
def test_means_of_halves_vary_as_means_of_samples_do(n):
    rng = np.random.default_rng(0)
    drawn = np.array([half(n, rng) for _ in range(4000)])
    assert drawn.mean(1) == pytest.approx(1) and ((drawn - 1) ** 2).mean(1) == pytest.approx(1)
    assert drawn.mean(0) == pytest.approx(np.ones(n), abs=0.1)
    x = rng.normal(size=n)
    assert (drawn @ x / n).var() == pytest.approx(x.var(ddof=1) / n, rel=0.1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0] * 3 + [2.0] * 94 + [3.0] * 3, (2.0, 2.0)),  # half of 3% is below 2.5%
        ([1.0] * 6 + [2.0] * 88 + [3.0] * 6, (1.0, 3.0)),
        ([0.5] * 20, (0.5, 0.5)),
        (list(range(1, 101)), (3, 98)),
    ],
)
def test_ends_of_an_interval_have_a_tail_beyond_with_half_of_their_own(values, expected):
    assert central(values, 0.95) == expected


def test_one_cluster_gives_no_interval():
    effects = table(draw(4, N))
    found = stability(effects, [0, 1], ["c"] * 4, ["t"] * 4, ranking="magnitude", n_resamples=20, seed=0)
    assert found.jaccard.ci is None and found.by_template == {}


def test_backups_help_more_once_the_circuit_is_replaced():
    alone, beside = torch.zeros(4, N, dtype=torch.float64), torch.zeros(4, N, dtype=torch.float64)
    alone[:, :3] = -2.0  # the circuit
    beside[:, 5] = -1.5  # takes over
    alone[:, 6], beside[:, 6] = -0.5, -0.75  # helps more
    alone[:, 7], beside[:, 7] = -0.5, -0.25  # helps less
    alone[:, 8], beside[:, 8] = 2.0, 1.0  # opposes less
    found = backups(table(alone), table(beside), [0, 1, 2])
    assert found.nodes == (5, 6)
    assert found.alone == (0.0, -0.5) and found.beside == (-1.5, -0.75)
    assert len(backups(table(alone), table(-draw(4, N).abs()), [0]).nodes) == MOST
