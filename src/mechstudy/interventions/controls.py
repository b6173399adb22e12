"""Controls of an effect: matched features, and random directions of equal norm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.features import FeatureAt, NamedActivations
from mechstudy.models.sites import Site

_ROWS_AT_ONCE = 8192  # of a decoder, copied in float64


def matched_controls(
    members: Sequence[FeatureAt],
    discovery: NamedActivations,
    dictionaries: Mapping[int, Basis],
    excluded: Collection[tuple[int, int]],
    n_controls: int,
) -> list[tuple[FeatureAt, ...]]:
    """Groups of features that resemble ``members`` but are not in the circuit.

    For each member: features of the same layer at the same named position, active on discovery prompts, not
    in ``excluded`` ((layer, feature) of the whole circuit), by closeness of mean activation x decoder norm.
    The nearest goes to control 1, the next to control 2, and so on; no feature stands for two members.

    Returns:
        ``n_controls`` groups, each in the members' order. A member without enough candidates is missing from
        the later groups; empty groups are left out.
    """
    barred = set(excluded) | {(m.layer, m.feature) for m in members}
    used: set[FeatureAt] = set()
    groups: list[list[FeatureAt]] = [[] for _ in range(n_controls)]
    for member in members:
        sizes_F = activation_sizes(discovery, dictionaries[member.layer], member.layer, member.position)
        distance = (sizes_F - sizes_F[member.feature]).abs()
        distance[sizes_F <= 0] = torch.inf
        order = torch.sort(distance, stable=True)
        n_matched = 0
        for gap, feature in zip(order.values.tolist(), order.indices.tolist(), strict=True):
            if gap == float("inf") or n_matched == n_controls:
                break
            control = FeatureAt(member.layer, feature, member.position)
            if (member.layer, feature) in barred or control in used:
                continue
            groups[n_matched].append(control)
            used.add(control)
            n_matched += 1
    return [tuple(g) for g in groups if g]


def activation_sizes(discovery: NamedActivations, dictionary: Basis, layer: int, name: str) -> Float64[Tensor, " f"]:
    """|Mean activation| x decoder norm of every feature at a named position; over all layers that a feature writes."""
    W_FD = dictionary.W_dec_all
    parts = [W_FD[i : i + _ROWS_AT_ONCE].double().norm(dim=-1) for i in range(0, len(W_FD), _ROWS_AT_ONCE)]
    norms_F: Tensor = torch.cat(parts).cpu()
    return (discovery.means(layer, name) * norms_F).abs()


def random_like(
    direction: Mapping[Site, Float[Tensor, " _"]], generator: torch.Generator
) -> dict[Site, Float[Tensor, " _"]]:
    """A random direction with the same norm at every site."""
    result = {}
    for site in sorted(direction):
        drawn = torch.randn(direction[site].shape, generator=generator, dtype=torch.float64)
        result[site] = with_norm_of(direction[site], drawn)
    return result


def with_norm_of(direction_D: Float[Tensor, " d"], other_D: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """``other_D`` scaled to the norm of ``direction_D``; zero stays zero."""
    other = other_D.to(direction_D)
    norm = other.norm()
    return other * (direction_D.norm() / norm) if float(norm) > 0 else other
