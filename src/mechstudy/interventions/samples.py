"""The plan of samples: which interventions run on which prompts, in one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Replacement, donor_numbers
from mechstudy.circuits.named_positions import positions_left_to_right
from mechstudy.core.seeds import torch_generator
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.controls import activation_sizes, matched_controls, random_like
from mechstudy.interventions.engine import RowEdit, SetFeature
from mechstudy.interventions.features import FeatureAt, FeatureGroup, NamedActivations, positions_named
from mechstudy.interventions.patching import donor
from mechstudy.interventions.runner import Suite
from mechstudy.interventions.steering import Direction, difference_of_means, feature_direction, steer
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site, parse_layers

CIRCUIT, SHAM, GRID = "circuit", "sham", "patching_grid"
# What to set a feature to on the suite's pair i: one value, one per token position, or None (its own).
_Setting = Callable[[FeatureAt, int], float | Mapping[int, float] | None]
_Values = Mapping[FeatureAt, Mapping[int, Mapping[int, float]]]


@dataclass(frozen=True)
class Policy:
    """What features are set to in one kind of intervention, in one of its draws."""

    kind: str
    values: _Setting
    draw: int = 0


@dataclass(frozen=True)
class Variant:
    """One intervention on any prompt: ``edits(i)`` are its edits of the suite's pair ``i``.

    ``role``: ``effect`` | ``control`` | ``baseline`` | ``sham``. ``start``: its lowest edited layer.
    """

    kind: str
    item: str
    group: str
    role: str
    start: int
    edits: Callable[[int], Sequence[RowEdit]]
    draw: int = 0
    alpha: float | None = None
    only_where_edited: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that will be run, and what the summary needs to know of it.

    ``controls[group name]`` are its matched groups; ``sizes[group name]`` the summed mean activation x
    decoder norm of the members and, averaged, of the controls; ``layers`` and ``positions`` span the grid.
    """

    behaviour: str
    groups: tuple[FeatureGroup, ...]
    controls: Mapping[str, tuple[tuple[FeatureAt, ...], ...]]
    sizes: Mapping[str, tuple[float, float | None]]
    suites: tuple[Suite[Variant], ...]
    layers: tuple[int, ...]
    positions: tuple[str, ...]


def build_plan(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    pairs_train: Sequence[PromptPair],
    pairs_test: Sequence[PromptPair],
    groups: Sequence[FeatureGroup],
    excluded: Collection[tuple[int, int]],
    config: InterventionConfig,
    *,
    behaviour: str,
    batch_tokens: int = 4096,
) -> Plan:
    """Means, donors, controls and directions from training prompts; the samples, on test prompts.

    Args:
        dictionaries: transcoders by layer.
        groups: from `features.feature_groups`; the first is the headline, and the one that steers.
        excluded: (layer, feature) of every feature of the circuit: none becomes a control.
    """
    train, test = list(pairs_train[: config.n_discovery]), list(pairs_test[: config.n_samples])
    discovery = NamedActivations(model, dictionaries, train, batch_tokens=batch_tokens)
    controls = {
        g.name: tuple(matched_controls(g.members, discovery, dictionaries, excluded, config.n_controls)) for g in groups
    }
    variants = _feature_variants(
        model, dictionaries, discovery, test, groups, controls, config, behaviour, batch_tokens
    )
    if "steering" in config.kinds and groups:
        variants += _steering_variants(model, dictionaries, discovery, train, test, groups[0], config, behaviour)
    suites = [Suite("features", tuple(test), tuple(variants))]
    layers: tuple[int, ...] = ()
    positions: list[str] = []
    if "patching" in config.kinds:
        few = test[: config.patching.n_pairs]
        layers, positions = parse_layers(config.patching.layers, model.n_layers), positions_left_to_right(few)
        cells = grid_variants(model, few, config.patching.site, layers, positions, batch_tokens)
        suites.append(Suite(GRID, tuple(few), cells, reuse=True))
    sizes = {g.name: _sizes(g, controls[g.name], discovery, dictionaries) for g in groups}
    return Plan(behaviour, tuple(groups), controls, sizes, tuple(suites), layers, tuple(positions))


def set_features(pair: PromptPair, values: Mapping[FeatureAt, float | Mapping[int, float] | None]) -> list[SetFeature]:
    """Edits that set features at their named positions to a value: one for all, or one per token position.

    A feature keeps its own activation where it has no value.
    """
    return [
        SetFeature(f.layer, f.feature, at, v.get(at) if isinstance(v, Mapping) else v)
        for f, v in values.items()
        for at in positions_named(pair, f.position)
    ]


def grid_variants(
    model: LanguageModel,
    pairs: Sequence[PromptPair],
    kind: str,
    layers: Sequence[int],
    positions: Sequence[str],
    batch_tokens: int = 4096,
) -> tuple[Variant, ...]:
    """Patching of every layer x position; prompts that lack the position are left out."""
    if not layers or not positions:
        return ()
    corrupted = donor(model, pairs, [Site(kind, layer) for layer in layers], batch_tokens=batch_tokens)

    def cell(site: Site, name: str) -> Callable[[int], Sequence[RowEdit]]:
        return lambda i: corrupted.edits(pairs[i], name, site)

    return tuple(
        Variant(
            GRID, f"{kind}.{layer}@{name}", "", "effect", layer, cell(Site(kind, layer), name), only_where_edited=True
        )
        for name in positions  # rows that start at one token run together
        for layer in layers
    )


def _feature_variants(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    discovery: NamedActivations,
    test: Sequence[PromptPair],
    groups: Sequence[FeatureGroup],
    controls: Mapping[str, Sequence[Sequence[FeatureAt]]],
    config: InterventionConfig,
    behaviour: str,
    batch_tokens: int,
) -> list[Variant]:
    every = [f for g in groups for part in (g.members, *controls[g.name]) for f in part]
    kinds: list[tuple[str, Replacement]] = []
    if "ablation" in config.kinds:
        kinds += [(f"ablation_{to}", to) for to in ("zero", "mean") if to in config.ablations]
    kinds += [("resampling", "resample")] if "resampling" in config.kinds else []
    kinds += [("patching", "corrupted")] if "patching" in config.kinds else []
    policies: list[Policy] = []
    for kind, to in kinds:
        donors = [
            donor_numbers(test, len(discovery.pairs), config.seed, behaviour, draw)
            for draw in range(config.resample_draws if to == "resample" else 0)
        ]
        policies += replacement_policies(
            kind, to, model, dictionaries, discovery, test, every, donors=donors, batch_tokens=batch_tokens
        )
    variants: list[Variant] = []
    for group in groups:
        variants += group_variants(group, controls[group.name], policies, test)
        if group.rank == 1:
            variants.append(sham_variant(group, test))
    return variants


def replacement_policies(
    kind: str,
    to: Replacement,
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    discovery: NamedActivations,
    pairs: Sequence[PromptPair],
    features: Sequence[FeatureAt],
    *,
    donors: Sequence[Sequence[int]] = (),
    batch_tokens: int = 4096,
) -> list[Policy]:
    """What features are set to, one policy for every draw.

    Args:
        to: ``zero``; the ``mean`` of the discovery prompts at the same named position; the activation on one of them
            (``resample``); the activation on the pair's ``corrupted`` prompt.
        donors: for ``resample``, in every draw the number of each pair's discovery prompt.
    """
    if to == "zero":
        return [Policy(kind, lambda _f, _i: 0.0)]
    if to == "mean":
        return [Policy(kind, lambda f, _i: float(discovery.means(f.layer, f.position)[f.feature]))]
    if to == "resample":
        values = discovery.values(features)
        return [Policy(kind, _donated(values, discovery, chosen), draw) for draw, chosen in enumerate(donors)]
    there = NamedActivations(model, dictionaries, pairs, corrupted=True, batch_tokens=batch_tokens)
    corrupted = there.values(features)
    return [Policy(kind, lambda f, i: corrupted[f].get(i, {}))]


def group_variants(
    group: FeatureGroup,
    controls: Sequence[Sequence[FeatureAt]],
    policies: Sequence[Policy],
    pairs: Sequence[PromptPair],
) -> list[Variant]:
    """Every policy on the group and on its controls."""
    items: list[tuple[str, str, Sequence[FeatureAt]]] = [(CIRCUIT, "effect", group.members)]
    items += [(f"control {i + 1}", "control", part) for i, part in enumerate(controls)]
    return [
        Variant(p.kind, item, group.name, role, _lowest(members), _setter(pairs, members, p.values), p.draw)
        for p in policies
        for item, role, members in items
    ]


def sham_variant(group: FeatureGroup, pairs: Sequence[PromptPair]) -> Variant:
    """Every member set to the activation it has: the numerical noise of the comparison."""
    own = _setter(pairs, group.members, lambda _f, _i: None)
    return Variant(SHAM, SHAM, group.name, "sham", _lowest(group.members), own)


def _lowest(members: Sequence[FeatureAt]) -> int:
    return min(m.layer for m in members)


def _setter(
    pairs: Sequence[PromptPair], members: Sequence[FeatureAt], values: _Setting
) -> Callable[[int], Sequence[RowEdit]]:
    return lambda i: set_features(pairs[i], {f: values(f, i) for f in members})


def _donated(donors: _Values, discovery: NamedActivations, chosen: Sequence[int]) -> Callable[[FeatureAt, int], float]:
    """The donor's activation at the named position (the mean over several; the mean of all donors if it has none)."""

    def value(f: FeatureAt, i: int) -> float:
        there = donors[f].get(chosen[i])
        return float(np.mean(list(there.values()))) if there else float(discovery.means(f.layer, f.position)[f.feature])

    return value


def _steering_variants(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    discovery: NamedActivations,
    train: Sequence[PromptPair],
    test: Sequence[PromptPair],
    group: FeatureGroup,
    config: InterventionConfig,
    behaviour: str,
) -> list[Variant]:
    features = feature_direction(group.members, discovery, dictionaries)
    directions = [("features", "effect", features, 0)]
    for i in range(config.n_controls):
        generator = torch_generator(config.seed, behaviour, f"random direction {i}")
        directions.append(("random", "control", random_like(features, generator), i))
    if all(pair.has_corrupted for pair in train):
        directions.append(("difference_of_means", "baseline", difference_of_means(model, train, features), 0))

    def edits(direction: Direction, alpha: float) -> Callable[[int], Sequence[RowEdit]]:
        return lambda i: steer(direction, alpha, test[i])

    return [
        Variant("steering", name, group.name, role, _first(direction), edits(direction, alpha), draw, alpha)
        for name, role, direction, draw in directions
        for alpha in config.alphas
    ]


def _first(direction: Direction) -> int:
    return min(site.layer for site in direction)


def _sizes(
    group: FeatureGroup,
    controls: Sequence[Sequence[FeatureAt]],
    discovery: NamedActivations,
    dictionaries: Mapping[int, Basis],
) -> tuple[float, float | None]:
    def total(members: Sequence[FeatureAt]) -> float:
        return sum(
            float(activation_sizes(discovery, dictionaries[m.layer], m.layer, m.position)[m.feature]) for m in members
        )

    return total(group.members), float(np.mean([total(c) for c in controls])) if controls else None
