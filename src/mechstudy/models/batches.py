"""Batches of rows of equal length, so that no padding ever enters the mathematics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def length_buckets(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices grouped so that each batch has one length and at most ``max_tokens`` tokens (at least one row).

    Order: by length, then by index; every index occurs exactly once.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        by_length[length].append(index)
    batches = []
    for length in sorted(by_length):
        rows = by_length[length]
        size = max(1, max_tokens // max(1, length))
        batches += [rows[i : i + size] for i in range(0, len(rows), size)]
    return batches
