"""Steering directions: the circuit's features, and the difference of means.

A direction is one vector per site that the features write, added there at the last position, times alpha. Alpha 1 is
the natural scale: what the group's features write there at their mean activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.controls import with_norm_of
from mechstudy.interventions.engine import AddVector
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

Direction = Mapping[Site, Float[Tensor, " _"]]


def feature_direction(
    members: Sequence[FeatureAt], discovery: NamedActivations, bases: Mapping[int, Basis]
) -> dict[Site, Float[Tensor, " _"]]:
    """Per site, the sum of mean activation x what each of the group's features writes there (float64)."""
    direction: dict[Site, Tensor] = {}
    for m in members:
        mean = float(discovery.means(m.layer, m.position)[m.feature])
        basis = bases[m.layer]
        for name, rows in zip(basis.sites_out, basis.writes([m.feature]), strict=True):
            site, written = Site.parse(name), mean * rows[0].double().cpu()
            direction[site] = direction[site] + written if site in direction else written
    return direction


def difference_of_means(
    model: LanguageModel, pairs: Sequence[PromptPair], like: Direction, *, batch_tokens: int = 4096
) -> dict[Site, Float[Tensor, " _"]]:
    """Mean of clean minus corrupted at the last position of the same sites, with the norms of ``like``."""
    sites = sorted(like)
    total = {site: torch.zeros(model.width(site), dtype=torch.float64) for site in sites}
    for batch in length_buckets([len(p.clean_tokens) for p in pairs], batch_tokens):
        corrupted = [pairs[i].corrupted_tokens for i in batch]
        lengths = dict.fromkeys(map(len, corrupted))
        for sign, rows in (
            (1.0, [pairs[i].clean_tokens for i in batch]),
            *((-1.0, [tokens for tokens in corrupted if len(tokens) == length]) for length in lengths),
        ):
            activations = captured(model, torch.tensor(rows), sites)
            for s in sites:
                total[s] += sign * activations[s][:, -1].double().sum(0).cpu()
    return {site: with_norm_of(like[site], total[site]) for site in sites}


def steer(direction: Direction, alpha: float, pair: PromptPair) -> list[AddVector]:
    """``alpha`` x the direction at the pair's last position; alpha 0 adds exactly nothing."""
    last = len(pair.clean_tokens) - 1
    return [AddVector(site, last, alpha * vector_D) for site, vector_D in sorted(direction.items())]
