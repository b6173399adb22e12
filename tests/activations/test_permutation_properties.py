"""The shuffle of a store is a bijection whatever its size, seed and run."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mechstudy.activations.permutation import Feistel, WindowedShuffle, run_length

SEEDS = st.integers(0, 2**63 - 1)


@given(n=st.integers(1, 3000), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_feistel_is_a_bijection_for_any_size_and_seed(n, seed):
    assert np.array_equal(np.sort(Feistel(n, seed)(np.arange(n))), np.arange(n))


@given(n=st.integers(1, 3000), seed=SEEDS, log_run=st.integers(0, 5), runs=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_windowed_shuffle_is_a_bijection_for_any_size_and_seed(n, seed, log_run, runs):
    shuffle = WindowedShuffle(n, seed, 1 << log_run, runs << log_run)
    assert np.array_equal(np.sort(shuffle(np.arange(n))), np.arange(n))


@given(n=st.integers(2, 3000), seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_rows_place_does_not_depend_on_the_rows_asked_with_it(n, seed, data):
    shuffle = WindowedShuffle(n, seed, 4, 64)
    some = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    assert np.array_equal(shuffle(some), shuffle(np.arange(n))[some])


def test_another_seed_is_another_order():
    rows = np.arange(5000)
    assert not np.array_equal(WindowedShuffle(5000, 1, 8)(rows), WindowedShuffle(5000, 2, 8)(rows))


def test_each_tenth_of_a_shuffled_file_holds_rows_from_all_tenths():
    """Rows of a document stay apart: chance alone would put 100 +- 10 of each source tenth in each tenth."""
    n = 100_000
    places = WindowedShuffle(n, 3, 16)(np.arange(n))
    table = np.histogram2d(np.arange(n), places, bins=10)[0]
    assert table.min() > 0.5 * n / 100
    assert table.max() < 1.6 * n / 100


def test_neighbours_in_the_file_are_seldom_of_one_document():
    n, context = 64_000, 128
    source = np.empty(n, dtype=np.int64)
    source[WindowedShuffle(n, 0, 16)(np.arange(n))] = np.arange(n)
    same = np.mean(source[1:] // context == source[:-1] // context)
    assert same < 0.08  # 1/32 in a window of 32 documents; unshuffled it is 0.99


def test_runs_fill_sixteen_kibibytes_and_no_more_than_twice_that():
    for row_bytes in (2, 100, 1152, 4096, 7168, 16384, 40000):
        run = run_length(row_bytes)
        assert run * row_bytes >= 16 * 1024
        assert run == 1 or run * row_bytes < 32 * 1024
