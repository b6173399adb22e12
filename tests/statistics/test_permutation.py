"""Sign-flip tests, by simulation."""

import numpy as np
import pytest

from mechstudy.statistics import sign_flip_p, smallest_p


def rng(seed=0):
    return np.random.default_rng(seed)


def test_p_values_of_no_effect_are_uniform_and_of_a_large_effect_small():
    g = rng(5)
    names = [str(i // 3) for i in range(30)]
    null = [sign_flip_p(np.repeat(g.normal(size=10), 3), names, g, n_permutations=199) for _ in range(300)]
    assert 0.02 <= np.mean(np.array(null) <= 0.05) <= 0.09 and 0.4 < np.mean(null) < 0.6
    assert sign_flip_p(np.full(30, 2.0), names, g, n_permutations=999) == pytest.approx(2 / 2**10, abs=4e-3)


def test_p_is_never_zero_and_is_one_where_nothing_moved():
    many = [str(i) for i in range(60)]
    assert sign_flip_p(np.ones(60), many, rng(), n_permutations=99) == 1 / 100
    assert sign_flip_p(np.zeros(60), many, rng()) == 1.0
    assert sign_flip_p([], [], rng()) is None
    assert sign_flip_p([3.0, 4.0], ["one", "one"], rng()) == 1.0  # a single cluster says nothing about chance


def test_the_sign_of_an_effect_does_not_change_its_p():
    x, names = rng(9).normal(0.4, 1, 25), [str(i) for i in range(25)]
    assert sign_flip_p(x, names, rng(1)) == sign_flip_p(-x, names, rng(1))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_no_effect_however_large_falls_below_the_smallest_p(n):
    p = sign_flip_p(np.full(n, 1e6), [str(i) for i in range(n)], rng())
    assert p == pytest.approx(smallest_p(n), rel=0.15) == pytest.approx(2.0 ** (1 - n), rel=0.15)
    assert (smallest_p(n) < 0.05) == (n >= 6)
