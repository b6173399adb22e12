"""Histograms and drawn activations against a count of every activation by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from mechstudy.features.activation_ranges import ActivationRange, RangeCollector
from mechstudy.features.selection import BINS, N_INTERVALS, PER_INTERVAL

B, T, N = 40, 12, 6


def activations(signed: bool, seed: int = 0) -> torch.Tensor:
    """[B, T, N] skewed sizes, a third of them zero, which grow over the documents so that bins are joined."""
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(B, T, N, generator=generator).exp() * torch.linspace(0.01, 5, B)[:, None, None] ** 2
    acts *= torch.rand(B, T, N, generator=generator) > 1 / 3
    if signed:
        acts *= torch.randn(B, T, N, generator=generator).sign()
    acts[:, 0] = 0
    return acts


def ranges(acts: torch.Tensor, *, signed: bool = False, size: int = B) -> tuple[ActivationRange, ...]:
    """Of documents in batches of ``size``."""
    collector = RangeCollector(range(100, 100 + acts.shape[2]), signed=signed)
    for first in range(0, len(acts), size):
        collector.add(acts[first : first + size], first)
    return collector.result()


def inside(value: float, low: float, high: float) -> bool:
    """The end nearer to zero belongs to an interval; zero belongs to none."""
    return value != 0 and (low <= value < high if low >= 0 else low < value <= high)


@pytest.mark.parametrize("signed", [False, True])
def test_bins_hold_the_activations_of_their_sizes(signed):
    acts = activations(signed)
    for i, found in enumerate(ranges(acts, signed=signed, size=7)):
        values = acts[..., i].flatten().tolist()
        largest = max(map(abs, values))
        assert found.bin_width * BINS == 2.0 ** (math.floor(math.log2(largest)) + 1)
        for sign, histogram in ((1, found.positive), (-1, found.negative)):
            counted = Counter(int(sign * value // found.bin_width) for value in values if sign * value > 0)
            assert {bin_: count for bin_, count in enumerate(histogram) if count} == counted
            assert not histogram or histogram[-1] > 0
        assert bool(found.negative) is signed


@pytest.mark.parametrize("signed", [False, True])
def test_intervals_split_each_side_of_the_range_and_their_members_are_in_them(signed):
    acts = activations(signed)
    for i, found in enumerate(ranges(acts, signed=signed, size=7)):
        values = acts[..., i]
        assert len(found.intervals) == N_INTERVALS * (1 + signed)
        assert [one.high for one in found.intervals[1:]] == [one.low for one in found.intervals[:-1]]
        for one in found.intervals:
            of_side = found.positive if one.low >= 0 else found.negative
            n_bins = (one.high - one.low) / found.bin_width
            assert abs(n_bins - len(of_side) / N_INTERVALS) < 1 and n_bins == int(n_bins)
            members = [(b, t) for b in range(B) for t in range(T) if inside(float(values[b, t]), one.low, one.high)]
            assert one.count == len(members)
            drawn = [divmod(place, T) for place in one.places]
            assert set(drawn) <= set(members)
            assert len(drawn) == len({b for b, _ in drawn}) == min(PER_INTERVAL, len({b for b, _ in members}))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("size", [1, 3, 11])
def test_batches_change_neither_histograms_nor_what_is_drawn(signed, size):
    acts = activations(signed)
    assert ranges(acts, signed=signed, size=size) == ranges(acts, signed=signed)


def test_other_features_do_not_change_what_is_drawn():
    acts = activations(signed=False)
    assert ranges(acts[..., :2]) == ranges(acts)[:2]


def test_draws_favour_no_document_and_no_position():
    n = 400
    drawn = ranges(torch.ones(30, 10, n))
    places = torch.tensor([place for of in drawn for one in of.intervals for place in one.places])
    assert len(places) == n * PER_INTERVAL, "all activations are in one bin"
    for counts in (torch.bincount(places // 10, minlength=30), torch.bincount(places % 10, minlength=10)):
        expected = len(places) / len(counts)
        assert (counts - expected).abs().max() < 5 * expected**0.5
    assert len({of.intervals[0].places for of in drawn}) > n * 0.9, "features draw for themselves"


def test_a_side_of_fewer_bins_than_intervals_has_an_interval_for_each():
    acts = torch.tensor([1.0, -0.02, -0.001, 0.5]).view(1, 4, 1)
    [found] = ranges(acts, signed=True)
    assert found.bin_width == 2 / BINS and found.negative == (2,)
    assert [(one.low, one.high, one.count) for one in found.intervals if one.high <= 0] == [(-2 / BINS, 0.0, 2)]


def test_silent_features_have_empty_ranges():
    [silent, other] = ranges(torch.tensor([[[0.0, 0.5], [0.0, -3.0]]]))
    assert (silent.positive, silent.negative, silent.intervals) == ((), (), ())
    assert sum(other.positive) == 1 and other.negative == (), "below zero is nothing, but of neurons"


def test_documents_of_many_activations_leave_room_for_others_when_bins_are_joined():
    acts = torch.rand(5, 200, N, generator=torch.Generator().manual_seed(0)) + 0.5
    acts[4] = 1000.0
    for found in ranges(acts, size=1):
        assert found.positive[0] == 4 * 200 and len(found.intervals[-1].places) == PER_INTERVAL
    assert ranges(acts, size=1) == ranges(acts)


def test_sizes_far_apart_share_a_histogram():
    for order in ((1e-30, 1e4), (1e4, 1e-30)):
        [found] = ranges(torch.tensor(order).view(2, 1, 1), size=1)
        assert found.positive[0] == 1 and found.positive[-1] == 1 and sum(found.positive) == 2
        assert [one.count for one in found.intervals] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions_of_the_same_numbers_agree(dtype):
    acts = activations(signed=True).bfloat16()
    acts = torch.where(acts.abs() < 1e-3, 0, acts).to(torch.float32)
    assert ranges(acts.to(dtype), signed=True) == ranges(acts, signed=True)


@pytest.mark.cuda
def test_a_gpu_counts_and_draws_the_same():
    acts = activations(signed=True)
    assert ranges(acts.cuda(), signed=True, size=7) == ranges(acts, signed=True)
