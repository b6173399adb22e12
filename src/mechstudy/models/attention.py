"""An attention implementation for Hugging Face models that records its patterns and scores, or runs with frozen ones.

It is registered with transformers under `NAME` and runs inside the native modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "mechstudy"


@dataclass(frozen=True)
class RecordedScores:
    """One layer's attention as the model itself computed it, before the mask and any soft cap.

    ``score_BQTS`` is ``scaling`` times the product of queries (after their norm and rotary map) and keys, for every
    pair of positions, those that the mask hides too. ``softcap`` is Gemma 2's: the softmax reads
    ``softcap * tanh(score / softcap)``.
    """

    query_BQTH: Float[Tensor, "b q t h"]
    key_BGTH: Float[Tensor, "b g t h"]
    score_BQTS: Float[Tensor, "b q t s"]
    pattern_BQTS: Float[Tensor, "b q t s"]
    scaling: float
    softcap: float | None


_recorded: dict[int, Tensor] | None = None
_scores: dict[int, RecordedScores] | None = None
_frozen: Mapping[int, Tensor | None] | None = None
_own: dict[int, Tensor] | None = None


def _attention(
    module: Any,
    query_BQTH: Tensor,
    key_BGTH: Tensor,
    value_BGTH: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Softmax attention with grouped values; the softmax is taken in at least fp32."""
    layer = module.layer_idx
    groups = query_BQTH.shape[1] // key_BGTH.shape[1]
    frozen = None if _frozen is None else _frozen[layer]
    if frozen is None or _own is not None:
        key = key_BGTH.repeat_interleave(groups, 1)
        scores = query_BQTH @ key.transpose(-1, -2)
        factor = query_BQTH.shape[-1] ** -0.5 if scaling is None else scaling
        scores = uncapped = scores * factor
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is not None:
            scores = scores + attention_mask[..., : key.shape[-2]]
        elif scores.shape[-2] > 1:
            later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        wide = torch.promote_types(scores.dtype, torch.float32)
        pattern = torch.softmax(scores, -1, dtype=wide).to(value_BGTH.dtype)
        if _scores is not None:
            query, own_key, score, weights = (x.detach() for x in (query_BQTH, key_BGTH, uncapped, pattern))
            _scores[layer] = RecordedScores(query, own_key, score, weights, float(factor), softcap)
        if _own is not None:
            _own[layer] = pattern.detach()
    if frozen is not None:
        pattern = frozen.to(value_BGTH.dtype)
    if _recorded is not None:
        _recorded[layer] = pattern.detach()
    out = pattern @ value_BGTH.repeat_interleave(groups, 1)
    return out.transpose(1, 2).contiguous(), pattern


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def _implementation(hf: Any) -> Iterator[None]:
    before = hf.config._attn_implementation
    hf.config._attn_implementation = NAME
    try:
        yield
    finally:
        hf.config._attn_implementation = before


@contextmanager
def recorded_patterns(hf: Any) -> Iterator[dict[int, Float[Tensor, "b q t s"]]]:
    """Inside the block, every forward pass records its attention patterns, by layer, in the yielded dict."""
    global _recorded
    patterns: dict[int, Tensor] = {}
    with _implementation(hf):
        _recorded = patterns
        try:
            yield patterns
        finally:
            _recorded = None


@contextmanager
def recorded_scores(hf: Any) -> Iterator[dict[int, RecordedScores]]:
    """Inside the block, every forward pass records its queries, keys, scores and patterns, by layer."""
    global _scores
    scores: dict[int, RecordedScores] = {}
    with _implementation(hf):
        _scores = scores
        try:
            yield scores
        finally:
            _scores = None


@contextmanager
def frozen_patterns(
    hf: Any, patterns: Mapping[int, Float[Tensor, "#b q t s"] | None], own: dict[int, Tensor] | None = None
) -> Iterator[None]:
    """Inside the block, attention uses these patterns, broadcast over the batch, instead of its own softmax.

    A layer whose pattern is None takes its own. ``own`` receives what each layer's queries and keys would give.
    """
    global _frozen, _own
    with _implementation(hf):
        _frozen, _own = patterns, own
        try:
            yield
        finally:
            _frozen, _own = None, None
