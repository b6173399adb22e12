"""Ablation of chosen features: effects per prompt, their interval, and matched controls."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import polars as pl

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.bases import check_bases
from mechstudy.circuits.donors import Replacement, donor_numbers
from mechstudy.circuits.named_positions import ALL
from mechstudy.circuits.node_names import OTHER
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.fitted import all_fitted, require_by_layer
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.controls import matched_controls
from mechstudy.interventions.effects import LogitEffects
from mechstudy.interventions.features import (
    FeatureAt,
    FeatureGroup,
    Features,
    NamedActivations,
    check_features,
    features_at,
    positions_named,
)
from mechstudy.interventions.results import COLUMNS, Cell
from mechstudy.interventions.runner import Suite, run_samples
from mechstudy.interventions.samples import group_variants, replacement_policies
from mechstudy.interventions.summary import Effects, PairedTest, Statistics, paired_test
from mechstudy.models.language_model import LanguageModel

_ARGUMENTS = {"bootstrap": "n_resamples", "permutations": "n_permutations", "ci": "level"}  # by field of the config
_UNIT = "ablate"  # of the seeds
_WORDS = {
    "mean": "their mean activations",
    "zero": "zero",
    "resample": "their activations on other prompts",
    "corrupted": "their activations on the corrupted prompts",
}


@dataclass(frozen=True)
class PromptEffect:
    """What ablation does to one prompt's logit difference (answer - wrong answer).

    ``clean`` and ``corrupted`` are those of the two prompts (NaN without one), ``ablated`` the clean prompt's without
    the features, ``effect = ablated - clean``; ``kl`` is KL(clean || ablated) in nats. Means over draws, and for
    ``control_effect`` over control groups too.
    """

    prompt_id: str
    prompt: str
    cluster: str
    clean: float
    corrupted: float
    ablated: float
    effect: float
    control_effect: float | None
    kl: float


@dataclass(frozen=True)
class Ablation:
    """Effects of ablating ``features`` together, per prompt (``prompts``) and over prompts (``test``).

    ``frame`` has the prompts as rows; ``summary()`` has effect, controls and their difference, with intervals.
    ``controls`` are the matched groups that ``test.control`` and ``test.difference`` are about.
    """

    to: Replacement
    features: tuple[FeatureAt, ...]
    controls: tuple[tuple[FeatureAt, ...], ...]
    prompts: tuple[PromptEffect, ...]
    test: PairedTest

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each prompt, with the fields of `PromptEffect`."""
        return pl.DataFrame([asdict(prompt) for prompt in self.prompts], infer_schema_length=None)

    def summary(self) -> pl.DataFrame:
        """Effect, controls and their difference, a row each: what, effect, low, high, p."""
        rows = [
            ("features", self.test.effect, self.test.p),
            ("matched controls", self.test.control, None),
            ("difference", self.test.difference, self.test.p_difference),
        ]
        return pl.DataFrame(
            [(what, e.value, *(e.ci or (None, None)), p) for what, e, p in rows if e is not None],
            schema={"what": pl.String, "effect": pl.Float64, "low": pl.Float64, "high": pl.Float64, "p": pl.Float64},
            orient="row",
        )

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.summary()}"

    def _repr_html_(self) -> str:
        return f"<p>{self._title()}</p>{self.summary()._repr_html_()}"

    def _title(self) -> str:
        noun = "feature" if len(self.features) == 1 else "features"
        return (
            f"{len(self.features)} {noun} set to {_WORDS[self.to]} on {len(self.prompts)} prompts: change of the logit "
            f"difference{self._missing()}"
        )

    def _missing(self) -> str:
        """Why intervals are missing."""
        named = {"features": self.test.effect, "controls": self.test.control, "difference": self.test.difference}
        reasons = [f"{name} {e.missing}" for name, e in named.items() if e is not None and e.missing]
        return f" (no interval: {', '.join(reasons)})" if reasons else ""


def ablate(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    pairs: Iterable[PromptPair],
    features: Features,
    *,
    to: Replacement = "mean",
    discovery: Sequence[PromptPair] | None = None,
    n_controls: int = 3,
    excluded: Collection[tuple[int, int]] = (),
    n_draws: int = 2,
    n_resamples: int = 2000,
    n_permutations: int = 9999,
    level: float = 0.95,
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> Ablation:
    """Replace features' activations on the pairs' clean prompts and measure the logit difference.

        ms.ablate(model, dicts, pairs, graph.top(10), to="mean")
        ms.ablate(model, dicts, pairs, ["13/1741", "15/20@last"], to="zero")

    Everything runs live: activations are computed from the edited run, so later layers respond.

    Args:
        dictionaries: transcoders by layer.
        features: ablated together; see `feature_at` for their names. Rows of a behaviour's graph are ablated at the
            positions they name, rows of a prompt's graph at every position.
        to: what activations are replaced by: ``zero``; the ``mean`` over the discovery prompts at the same named
            position; those of another discovery prompt (``resample``); those on the pair's ``corrupted`` prompt.
        discovery: prompts that give means, donors and controls; None takes ``pairs`` (a prompt is then never its own
            donor).
        n_controls: groups of control features, matched in layer, position and size; 0 for none.
        excluded: (layer, feature) that are no controls, such as the rest of the circuit.
        n_draws: donors per prompt, for ``to="resample"``.

    Raises:
        MechstudyError: no pairs or features, a layer without a transcoder, a feature or position that does not exist.
    """
    pairs, members = list(pairs), tuple(features_at(features))
    config = _config(bootstrap=n_resamples, permutations=n_permutations, ci=level, seed=seed)
    require_by_layer(dictionaries)
    _check(dictionaries, pairs, members, to)
    dictionaries = {layer: dictionaries[layer] for layer in sorted({m.layer for m in members})}
    dictionaries = all_fitted(model, dictionaries)
    check_bases(dictionaries, "ablations", model)
    activations = NamedActivations(model, dictionaries, discovery or pairs, batch_tokens=batch_tokens)
    controls = tuple(matched_controls(members, activations, dictionaries, excluded, n_controls))
    every = [f for group in (members, *controls) for f in group]
    donors = [_donors(pairs, discovery, seed, draw) for draw in range(n_draws if to == "resample" else 0)]
    policies = replacement_policies(
        to, to, model, dictionaries, activations, pairs, every, donors=donors, batch_tokens=batch_tokens
    )
    group = FeatureGroup(1, f"{len(members)} features", members)
    variants = group_variants(group, controls, policies, pairs)
    samples = run_samples(
        model,
        dictionaries,
        [Suite(_UNIT, tuple(pairs), tuple(variants))],
        lambda chunk: LogitEffects(model, chunk.pairs, progress),
        progress=progress,
        batch_tokens=batch_tokens,
    )
    rows: dict[str, list[dict[str, Cell]]] = {pair.id: [] for pair in pairs}
    for cells in samples:
        row = dict(zip(COLUMNS, cells, strict=True))
        rows[str(row["prompt_id"])].append(row)
    prompts = tuple(_prompt_effect(pair, rows[pair.id]) for pair in pairs)
    ids, clusters = tuple(p.prompt_id for p in prompts), tuple(p.cluster for p in prompts)
    effect = Effects(ids, clusters, np.array([p.effect for p in prompts]))
    against = Effects(ids, clusters, np.array([p.control_effect for p in prompts])) if controls else None
    return Ablation(to, members, controls, prompts, paired_test(to, effect, against, Statistics(config, _UNIT)))


def _config(**fields: Any) -> InterventionConfig:
    """The statistics of an ablation; an error names the argument of `ablate`."""
    try:
        return InterventionConfig(**fields)
    except MechstudyError as error:
        field, _, reason = error.what.removeprefix("InterventionConfig: ").partition(": ")
        raise MechstudyError(f"{_ARGUMENTS.get(field, field)}: {reason}", facts=error.facts, fix=error.fix) from None


def _check(
    dictionaries: Mapping[int, Basis], pairs: Sequence[PromptPair], members: Sequence[FeatureAt], to: str
) -> None:
    if to not in get_args(Replacement):
        raise MechstudyError(
            f"ablation cannot replace activations by {to!r}", facts={"to": ", ".join(get_args(Replacement))}
        )
    if not pairs:
        raise MechstudyError("there are no prompt pairs to ablate on")
    if len({pair.id for pair in pairs}) < len(pairs):
        raise MechstudyError("prompt pairs share an id", fix="give every pair its own id")
    names = list(dict.fromkeys(name for pair in pairs for name in pair.positions))
    check_features(members, dictionaries)
    for f in members:
        if f.position not in (OTHER, ALL) and not any(positions_named(pair, f.position) for pair in pairs):
            raise MechstudyError(
                f"{f}: no prompt has a position {f.position!r}", facts={"positions": ", ".join([*names, OTHER, ALL])}
            )


def _donors(pairs: Sequence[PromptPair], discovery: Sequence[PromptPair] | None, seed: int, draw: int) -> Sequence[int]:
    """A donor's number for each pair; never its own where the pairs are each other's donors."""
    if discovery:
        return donor_numbers(pairs, len(discovery), seed, _UNIT, draw)
    others = donor_numbers(pairs, max(1, len(pairs) - 1), seed, _UNIT, draw)
    return [(i + 1 + other) % len(pairs) for i, other in enumerate(others)]


def _prompt_effect(pair: PromptPair, rows: Sequence[Mapping[str, Cell]]) -> PromptEffect:
    own = [r for r in rows if r["role"] == "effect"]
    control = [r for r in rows if r["role"] == "control"]

    def mean(name: str, of: Sequence[Mapping[str, Cell]] = own) -> float:
        return float(np.mean([float(r[name] or 0) for r in of]))

    return PromptEffect(
        pair.id,
        pair.clean,
        pair.group,
        mean("clean"),
        mean("corrupted") if pair.has_corrupted else float("nan"),
        mean("metric"),
        mean("value"),
        mean("value", control) if control else None,
        mean("kl"),
    )
