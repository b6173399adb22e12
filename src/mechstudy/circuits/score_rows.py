"""Edges through attention patterns: what sources do to targets by moving where heads attend, to first order.

A graph's ledger freezes patterns. Beside it stand QK edges: a source moves a score as part of its query or its key, the
score moves the pattern, and with it what the head passes to the target. Each path here goes through exactly one score;
before and after it, it follows the linear model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.circuits.linear_prompt import LinearisedPrompt
from mechstudy.circuits.query_key import score_gradient, through_scores
from mechstudy.circuits.rows import SourceIndex, Target, direct_effects, injected_effects
from mechstudy.models.query_key import QueryKey

_NUMBERS = 1 << 26  # of the gradients of scores that are held together


@torch.no_grad()
def score_effects(
    prompt: LinearisedPrompt, index: SourceIndex, targets: Sequence[Target], scores: Mapping[int, QueryKey]
) -> Float[Tensor, "r s"]:
    """QK edges from every source to every target, through one score of the given layers: [R, S].

    Columns are those of `direct_effects`; the last ones hold what constants contribute to scores' effects.

    Args:
        scores: queries and keys of the prompt (`models.query_keys`), of every layer or of some.
    """
    length, n_heads = prompt.n_positions, prompt.layers[0].pattern_QTS.shape[0]
    size = max(1, _NUMBERS // (n_heads * length**2))
    parts = [_effects(prompt, index, targets[i : i + size], scores) for i in range(0, len(targets), size)]
    return torch.cat(parts)


def _effects(
    prompt: LinearisedPrompt, index: SourceIndex, targets: Sequence[Target], scores: Mapping[int, QueryKey]
) -> Tensor:
    entering: dict[int, Tensor] = {}

    def watch(layer: int, reached: list[int], g_RTD: Tensor) -> None:
        if layer not in scores or not reached:
            return
        x, whole = prompt.layers[layer], prompt.tokens_TD.new_zeros(len(reached), *prompt.tokens_TD.shape)
        whole[:, : g_RTD.shape[1]] = g_RTD
        effect_RQTS = score_gradient(scores[layer], x.attention, x.norm_attn_post, whole)
        query_RTD, key_RTD = through_scores(scores[layer], effect_RQTS)
        entering[layer] = torch.zeros_like(whole[:1]).repeat(len(targets), 1, 1)
        entering[layer][torch.tensor(reached, device=whole.device)] = query_RTD + key_RTD

    direct_effects(prompt, index, targets, watch)
    return injected_effects(prompt, index, entering, len(targets))
