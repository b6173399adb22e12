"""Samples of prompts in which templates and groups keep their shares."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from mechstudy.behaviours.schema import PromptPair


def sample(pairs: Sequence[PromptPair], n: int, seed: int) -> list[PromptPair]:
    """The first ``n`` pairs of an order in which every beginning is a proportional sample.

    Files are often sorted by condition, so that their first lines are all of one kind. Templates, and within a template
    groups, get their seats as in a parliament (Sainte-Laguë): of 80 pairs of one template and 40 of another, a sample
    of 30 holds 20 and 10. The seed decides between equals, which includes all pairs of one group.

    Args:
        pairs: in any order; the result does not depend on it.
        n: how many; all of them, in this order, if there are fewer.
        seed: of the order.
    """

    def rank(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{text}".encode()).digest()

    def shuffled(part: Sequence[PromptPair]) -> list[PromptPair]:
        return sorted(part, key=lambda pair: rank(f"pair\n{pair.id}"))

    def by_group(part: Sequence[PromptPair]) -> list[PromptPair]:
        return _interleaved(part, lambda pair: pair.group, rank, shuffled)

    return _interleaved(pairs, lambda pair: pair.template, rank, by_group)[:n]


def _interleaved(
    pairs: Sequence[PromptPair],
    key: Callable[[PromptPair], str],
    rank: Callable[[str], bytes],
    order: Callable[[Sequence[PromptPair]], list[PromptPair]],
) -> list[PromptPair]:
    """The pairs of each key in their ``order``; among keys, the least represented for its size comes next."""
    parts: dict[str, list[PromptPair]] = {}
    for pair in pairs:
        parts.setdefault(key(pair), []).append(pair)
    seats = [
        ((2 * number + 1) / len(part), rank(name), number, pair)
        for name, part in parts.items()
        for number, pair in enumerate(order(part))
    ]
    return [pair for *_, pair in sorted(seats, key=lambda seat: seat[:3])]
