"""Batches of rows of equal length, so that no padding ever enters the mathematics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mechstudy.core.progress import NullProgress, Progress
from mechstudy.machine.runtime import oom_backoff

if TYPE_CHECKING:
    from torch import Tensor

    from mechstudy.models.language_model import LanguageModel
    from mechstudy.models.sites import Site


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


def captured(
    model: LanguageModel, tokens_BT: Tensor, sites: Sequence[Site], progress: Progress | None = None
) -> dict[Site, Tensor]:
    """Activations [B, T, width] of each site, from a run that ends at the deepest; halves the batch where memory
    runs out."""
    import torch

    deepest = max(site.layer for site in sites)

    def forward(size: int) -> dict[Site, Tensor]:
        parts = [
            model.forward(part, capture=sites, stop_after=deepest, logits_at=None).activations
            for part in tokens_BT.split(size)
        ]
        return parts[0] if len(parts) == 1 else {site: torch.cat([part[site] for part in parts]) for site in sites}

    return oom_backoff(forward, len(tokens_BT), progress or NullProgress(), item_tokens=tokens_BT.shape[1])
