"""The circuits that the same procedure finds with other dictionaries: of other seeds, or with a frozen random part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.circuits.node_sets import nodes_of
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.features import FeatureAt
from mechstudy.models.language_model import LanguageModel
from mechstudy.statistics.bootstrap import Estimate
from mechstudy.verdict.criteria import Criterion

ALIKE = 0.7  # cosine of what two features write from which they count as the same


@dataclass(frozen=True)
class Variant:
    """Other dictionaries of the same layers; ``frozen`` where one of their matrices is as it was drawn at random."""

    bases: Mapping[int, Basis]
    frozen: bool = False


@dataclass(frozen=True)
class VariantCircuit:
    """The circuit that was chosen with a variant's dictionaries, on the same prompts by the same procedure.

    Attributes:
        name: the variant's.
        frozen: whether it is a control with a frozen random part.
        n_nodes: that it was chosen from.
        size: of the circuit.
        f: that it carries; ``at_size`` the first nodes of its order, as many as the judged circuit has; ``explained``
            without the errors of dictionaries.
        less: how much more the judged circuit carries without errors, on the same prompts.
        features: of the judged circuit; ``features_again`` those with one in this circuit, at the same layer and
            position, that writes alike (cosine of at least `ALIKE`).
        others: heads, MLPs and errors of the judged circuit; ``others_again`` those that are in this one too.
    """

    name: str
    frozen: bool
    n_nodes: int
    size: int
    f: Estimate
    at_size: Estimate
    explained: Estimate
    less: Estimate
    features: int
    features_again: int
    others: int
    others_again: int

    @property
    def record(self) -> dict[str, Any]:
        """As it is written to ``verdict.json``."""
        estimates = {"f": self.f, "at_size": self.at_size, "explained": self.explained, "less": self.less}
        return {
            **{field: getattr(self, field) for field in ("name", "frozen", "n_nodes", "size")},
            **{name: e.value for name, e in estimates.items()},
            **{f"{name}_ci": list(e.ci) if e.ci else None for name, e in estimates.items()},
            **{field: getattr(self, field) for field in ("features", "features_again", "others", "others_again")},
        }


def found_again(
    model: LanguageModel,
    own: Sequence[Any],
    bases: Mapping[int, Basis],
    other: Sequence[Any],
    other_bases: Mapping[int, Basis],
) -> tuple[int, int, int, int]:
    """How many features of a circuit there are, how many another one has, and the same of its other nodes.

    Args:
        model: the model.
        own: the circuit's nodes.
        bases: of its features.
        other: the other circuit's nodes.
        other_bases: of the other's features.
    """
    mine, theirs = _at_places(model, own, bases), _at_places(model, other, other_bases)
    again = sum(
        int(((vectors_ID @ theirs[place].T) >= ALIKE).any(1).sum())
        for place, vectors_ID in mine.items()
        if place in theirs
    )
    rest = {node for node in own if not isinstance(node, FeatureAt)}
    return len(own) - len(rest), again, len(rest), len(rest & set(other))


def _at_places(
    model: LanguageModel, members: Sequence[Any], bases: Mapping[int, Basis]
) -> dict[tuple[int, str], Float[Tensor, "f d"]]:
    """Unit vectors of what the features write, by layer and position."""
    ids: dict[tuple[int, str], list[int]] = defaultdict(list)
    for node in members:
        if isinstance(node, FeatureAt):
            ids[node.layer, node.position].append(node.feature)
    of_layers = nodes_of(model, bases, "variants")
    return {
        (layer, position): torch.nn.functional.normalize(
            torch.cat(of_layers[layer].vectors(torch.tensor(features)), 1).double(), dim=1
        )
        for (layer, position), features in ids.items()
    }


def variant_criteria(
    circuits: Sequence[VariantCircuit], explained: float, beyond: float
) -> tuple[Criterion, Criterion]:
    """Whether other dictionaries show a circuit too, and whether frozen ones show less.

    Args:
        circuits: of all variants.
        explained: f without errors that the circuit of every trained variant must reach.
        beyond: how much more than that of every frozen one the judged circuit must carry without errors.
    """
    trained = [c.explained for c in circuits if not c.frozen]
    frozen = [c.less for c in circuits if c.frozen]
    return (
        _least("variants", trained, explained, "there are no other dictionaries of every layer"),
        _least("controls", frozen, beyond, "there are no frozen dictionaries of every layer"),
    )


def _least(name: str, estimates: Sequence[Estimate], threshold: float, missing: str) -> Criterion:
    if not estimates:
        return Criterion(name, Estimate(None, None, 0, 0), threshold, missing=missing)
    worst = ("not measured", "not met", "open", "met")
    criteria = [Criterion(name, e, threshold) for e in estimates]
    return min(criteria, key=lambda c: (worst.index(c.state), c.estimate.value or 0.0))
