"""Batches of rows of equal length, which need no padding, and captures that fit into memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.core.progress import NullProgress, Progress
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


def length_buckets(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of rows, grouped into batches of one length and at most ``max_tokens`` tokens (but at least one row).

    Batches are in order of length, rows within a length in order of index; every index occurs exactly once.
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
    model: LanguageModel, tokens_BT: Int[Tensor, "b t"], sites: Sequence[Site], progress: Progress | None = None
) -> dict[Site, Float[Tensor, "b t width"]]:
    """Activations at each site, from a forward pass that stops after the deepest one.

    Where memory runs out, the batch is halved and tried again.
    """
    deepest = max(site.layer for site in sites)

    def forward(size: int) -> dict[Site, Tensor]:
        parts = [
            model.forward(part, capture=sites, stop_after=deepest, logits_at=None).activations
            for part in torch.split(tokens_BT, size)
        ]
        return parts[0] if len(parts) == 1 else {site: torch.cat([part[site] for part in parts]) for site in sites}

    return oom_backoff(forward, len(tokens_BT), progress or NullProgress(), item_tokens=tokens_BT.shape[1])
