"""Steering directions: the circuit's features, and the difference of means.

A direction is one vector per layer, added to ``mlp_out`` at the last position, times alpha. Alpha 1 is the natural
scale: what the group's features write there at their mean activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.interventions.controls import with_norm_of
from mechstudy.interventions.engine import AddVector
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

Direction = Mapping[int, Float[Tensor, " d"]]


def feature_direction(
    members: Sequence[FeatureAt], discovery: NamedActivations, dictionaries: Mapping[int, Dictionary]
) -> dict[int, Float[Tensor, " d"]]:
    """Per layer, the sum of mean activation x what each of the group's features writes there (float64)."""
    direction: dict[int, Tensor] = {}
    for m in members:
        mean = float(discovery.means(m.layer, m.position)[m.feature])
        for ahead, rows in enumerate(dictionaries[m.layer].writes([m.feature])):
            layer, written = m.layer + ahead, mean * rows[0].double().cpu()
            direction[layer] = direction[layer] + written if layer in direction else written
    return direction


def difference_of_means(
    model: LanguageModel, pairs: Sequence[PromptPair], like: Direction, *, batch_tokens: int = 4096
) -> dict[int, Float[Tensor, " d"]]:
    """Mean of clean minus corrupted ``mlp_out`` at the last position, with the norms of ``like``."""
    sites = [Site("mlp_out", layer) for layer in sorted(like)]
    total = {s.layer: torch.zeros(model.d_model, dtype=torch.float64) for s in sites}
    for batch in length_buckets([len(p.clean_tokens) for p in pairs], batch_tokens):
        corrupted = [pairs[i].corrupted_tokens for i in batch]
        lengths = dict.fromkeys(map(len, corrupted))
        for sign, rows in (
            (1.0, [pairs[i].clean_tokens for i in batch]),
            *((-1.0, [tokens for tokens in corrupted if len(tokens) == length]) for length in lengths),
        ):
            activations = captured(model, torch.tensor(rows), sites)
            for s in sites:
                total[s.layer] += sign * activations[s][:, -1].double().sum(0).cpu()
    return {layer: with_norm_of(like[layer], total[layer]) for layer in sorted(like)}


def steer(direction: Direction, alpha: float, pair: PromptPair) -> list[AddVector]:
    """``alpha`` x the direction at the pair's last position; alpha 0 adds exactly nothing."""
    last = len(pair.clean_tokens) - 1
    return [AddVector(Site("mlp_out", layer), last, alpha * v) for layer, v in sorted(direction.items())]
