"""Histograms of features' activations, and activations drawn from each interval of their range, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.features.selection import BINS, N_INTERVALS, PER_INTERVAL

_HALVINGS = BINS.bit_length() - 1  # after which all bins are one
_SMALLEST = -100  # exponent of two: sizes below are in the first bin
_PLACE_BITS = 32  # of a key; the other bits are a hash
_EMPTY = torch.iinfo(torch.long).max


@dataclass(frozen=True)
class Interval:
    """Activations from ``low`` to ``high`` (one bin boundary to another), and some of them.

    ``count``: rows whose activation is in the interval; the bound nearer to zero belongs to it, the other does not, and
    zero belongs to none. ``places`` (document x context + position): activations drawn at random by a hash of feature
    and place, at most one per document.
    """

    low: float
    high: float
    count: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class ActivationRange:
    """How a feature's nonzero activations are distributed.

    ``positive[i]`` rows have an activation from i to i + 1 times ``bin_width``, ``negative[i]`` rows one of that size
    below zero, up to the last bin that is not empty. ``bin_width`` is a power of two: that of the smallest range of
    `BINS` bins that holds every activation. ``intervals``, the largest values first, split each side of zero into
    `N_INTERVALS` equal parts, each rounded to whole bins; a side of fewer bins has as many intervals as bins.
    """

    bin_width: float
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    intervals: tuple[Interval, ...]


class RangeCollector:
    """Collects the ranges of one layer's features batch by batch.

    The range is not known beforehand. A bin's width is a power of two, so where a larger activation comes, bins are
    joined in pairs and counts stay exact. Of each bin the activations with the smallest hashes are kept, at most one
    per document; those of two bins contain those of both together. Thus no result depends on batches, and memory
    depends on the number of features alone.

    Args:
        features: their numbers, which enter the hash.
        signed: whether activations below zero count, as those of neurons do.
    """

    def __init__(self, features: Sequence[int], *, signed: bool) -> None:
        self.features, self.signed = torch.tensor(features, dtype=torch.long), signed
        self.context = 1
        shape = (len(features), 2 if signed else 1, BINS)
        self.exponent_n = torch.full(shape[:1], _SMALLEST)
        self.counts_nSK = torch.zeros(shape, dtype=torch.long)
        self.keys_nSKm = torch.full((*shape, PER_INTERVAL), _EMPTY)

    def add(self, acts_BTn: Float[Tensor, "b t n"], first_document: int) -> None:
        """Add documents. All have the same length, and a document is never split."""
        n_documents, self.context, n = acts_BTn.shape
        acts_BTn = acts_BTn.float() if acts_BTn.element_size() < 4 else acts_BTn
        self.counts_nSK, self.keys_nSKm = self.counts_nSK.to(acts_BTn.device), self.keys_nSKm.to(acts_BTn.device)
        size_BTn = acts_BTn.abs() if self.signed else acts_BTn.clamp_min(0)
        self._widen(size_BTn.amax((0, 1)).cpu())

        slot_BTn = (size_BTn / self._width_n().to(size_BTn)).long().clamp(0, BINS - 1)
        if self.signed:
            slot_BTn += BINS * (acts_BTn < 0)
        slot_BTn += self.counts_nSK[0].numel() * torch.arange(n, device=slot_BTn.device)
        active_BTn = size_BTn > 0
        self.counts_nSK += slot_BTn[active_BTn].bincount(minlength=self.counts_nSK.numel()).view_as(self.counts_nSK)

        keys_BTn = torch.where(active_BTn, self._keys(n_documents, first_document, slot_BTn.device), _EMPTY)
        best = torch.full((n_documents, self.counts_nSK.numel()), _EMPTY, device=slot_BTn.device)
        best.scatter_reduce_(1, slot_BTn.flatten(1), keys_BTn.flatten(1), "amin")
        known = self.keys_nSKm.flatten(0, 2)
        self.keys_nSKm = _smallest(torch.cat([known, best.T], 1)).view_as(self.keys_nSKm)

    def result(self) -> tuple[ActivationRange, ...]:
        """The ranges of the features, in their order."""
        widths, counts, keys = self._width_n().tolist(), self.counts_nSK.tolist(), self.keys_nSKm.tolist()
        return tuple(self._range(*of) for of in zip(widths, counts, keys, strict=True))

    def _range(self, width: float, counts: list[list[int]], keys: list[list[list[int]]]) -> ActivationRange:
        intervals: list[Interval] = []
        histograms: dict[int, tuple[int, ...]] = {-1: ()}
        for sign, of_side, keys_of_side in zip((1, -1), counts, keys, strict=False):
            n_bins = max((i + 1 for i, count in enumerate(of_side) if count), default=0)
            histograms[sign] = tuple(of_side[:n_bins])
            edges = sorted({n_bins * i // N_INTERVALS for i in range(N_INTERVALS + 1)})
            for start, stop in pairwise(edges):
                low, high = sorted((sign * start * width, sign * stop * width))
                places = self._drawn(key for of_bin in keys_of_side[start:stop] for key in of_bin)
                intervals.append(Interval(low, high, sum(of_side[start:stop]), places))
        intervals.sort(key=lambda one: -one.high)
        return ActivationRange(width, histograms[1], histograms[-1], tuple(intervals))

    def _drawn(self, keys: Iterable[int]) -> tuple[int, ...]:
        by_document: dict[int, int] = {}
        for key in sorted(keys):
            if key != _EMPTY:
                place = key % (1 << _PLACE_BITS)
                by_document.setdefault(place // self.context, place)
        return tuple(by_document.values())[:PER_INTERVAL]

    def _width_n(self) -> Float[Tensor, " n"]:
        return torch.tensor([2.0**exponent / BINS for exponent in self.exponent_n.tolist()], dtype=torch.float64)

    def _keys(self, n_documents: int, first: int, device: torch.device) -> Int[Tensor, "b t n"]:
        """A hash of feature and place in the high bits, which orders, and the place in the low ones."""
        place_P = torch.arange(first * self.context, (first + n_documents) * self.context, device=device)
        place_BT1 = place_P.view(n_documents, self.context, 1)
        hash_BTn = _mixed(_mixed(self.features.to(device)) + place_BT1) >> _PLACE_BITS
        return (hash_BTn << _PLACE_BITS) + place_BT1

    def _widen(self, largest_n: Float[Tensor, " n"]) -> None:
        """Join bins in pairs until the largest activation fits."""
        exponent_n = torch.where(largest_n > 0, torch.frexp(largest_n).exponent, _SMALLEST)
        exponent_n = torch.maximum(self.exponent_n, exponent_n)
        halvings_n = (exponent_n - self.exponent_n).clamp_max(_HALVINGS)
        self.exponent_n = exponent_n
        for step in range(int(halvings_n.max())):
            chosen = (halvings_n > step).to(self.counts_nSK.device)
            joined = self.counts_nSK[chosen].view(-1, self.counts_nSK.shape[1], BINS // 2, 2).sum(-1)
            self.counts_nSK[chosen] = torch.cat([joined, torch.zeros_like(joined)], -1)
            keys = self._joined(self.keys_nSKm[chosen])
            self.keys_nSKm[chosen] = torch.cat([keys, torch.full_like(keys, _EMPTY)], -2)

    def _joined(self, keys_nSKm: Int[Tensor, "n s k m"]) -> Int[Tensor, "n s half m"]:
        both = keys_nSKm.reshape(*keys_nSKm.shape[:2], BINS // 2, 2 * PER_INTERVAL).sort(-1).values
        document = both % (1 << _PLACE_BITS) // self.context
        again = (document[..., None] == document[..., None, :]).tril(-1).any(-1)
        return _smallest(both.masked_fill(again, _EMPTY))


def _smallest(keys: Int[Tensor, "*rows k"]) -> Int[Tensor, "*rows m"]:
    return keys.topk(PER_INTERVAL, -1, largest=False).values


def _mixed(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Integers hashed to 63 bits, alike on every device; products of int64 wrap around."""
    for factor in (-0x61C8864680B583EB, -0x4B47D0C5A6B4F3A9):
        x = x * factor
        x = x ^ (x >> 29 & (1 << 35) - 1)
    return x & _EMPTY
