"""Features at named positions: groups to intervene on, and their activations on unedited prompts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.active_nodes import applies_at
from mechstudy.circuits.bases import site_read
from mechstudy.circuits.donors import require_corrupted
from mechstudy.circuits.named_positions import ALL
from mechstudy.circuits.node_names import ANSWER, OTHER, aligned_names, is_named, node_id
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.interventions.config import InterventionConfig, RankBy
from mechstudy.interventions.engine import encode_rows
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import LanguageModel


@dataclass(frozen=True, order=True)
class FeatureAt:
    """A feature of a layer's dictionary at a named position; prints as its node id, ``f.12.345@subject``.

    The name ``other`` means all positions that carry no name, ``all`` every position.
    """

    layer: int
    feature: int
    position: str

    def __str__(self) -> str:
        return node_id("feature", self.layer, self.feature, self.position)

    def as_json(self) -> dict[str, Any]:
        """Its form in summary.json."""
        return {"layer": self.layer, "feature": self.feature, "position": self.position}


FeatureName = FeatureAt | str | tuple[int, int] | tuple[int, int, str]
# One or several features, or rows of a graph's ``nodes``, such as ``graph.top(10)``.
Features = FeatureName | Iterable[FeatureName] | pl.DataFrame


def feature_at(name: FeatureName) -> FeatureAt:
    """A feature as users write it.

    At every position ``"12/345"`` or ``(12, 345)``; at a named one ``"12/345@subject"``, ``"f.12.345@subject"`` or
    ``(12, 345, "subject")``.

    Raises:
        MechstudyError: it is something else.
    """
    if isinstance(name, FeatureAt):
        return name
    if isinstance(name, tuple) and len(name) in (2, 3):
        return FeatureAt(int(name[0]), int(name[1]), name[2] if len(name) == 3 else ALL)
    if isinstance(name, str) and (match := re.fullmatch(r"(?:f\.)?(\d+)[/.](\d+)(?:@(.+))?", name.strip())):
        return FeatureAt(int(match[1]), int(match[2]), match[3] or ALL)
    raise MechstudyError(f"{name!r} is not a feature", fix='write layer/feature, or layer/feature@position: "13/1741"')


def features_at(features: Features) -> list[FeatureAt]:
    """The features, each once, in order.

    Rows of a behaviour's graph are at the positions they name; those of a prompt's graph, whose positions are numbers,
    at every position.

    Raises:
        MechstudyError: none is named, or the frame has no column ``feature``.
    """
    if isinstance(features, pl.DataFrame):
        if "feature" not in features.columns:
            raise MechstudyError(
                "the frame has no column feature",
                facts={"columns": ", ".join(features.columns)},
                fix="graph.top(10), or rows of graph.nodes",
            )
        rows = features.drop_nulls("feature").to_dicts()
        places = [row.get("position") for row in rows]
        names: Iterable[FeatureName] = [
            f"{row['feature']}@{place}" if isinstance(place, str) else row["feature"]
            for row, place in zip(rows, places, strict=True)
        ]
    elif isinstance(features, FeatureAt | str) or (isinstance(features, tuple) and isinstance(features[0], int)):
        names = [cast("FeatureName", features)]
    else:
        names = cast("Iterable[FeatureName]", features)
    members = list(dict.fromkeys(feature_at(name) for name in names))
    if not members:
        raise MechstudyError("no features are named", fix='for example graph.top(10), or ["13/1741"]')
    return members


def check_features(features: Iterable[FeatureAt], dictionaries: Mapping[int, Basis]) -> None:
    """Refuse features that the dictionaries do not have.

    Raises:
        MechstudyError: the first such feature, and which there are.
    """
    of_neurons = any(isinstance(one, Neurons) for one in dictionaries.values())  # then every layer has nodes
    for f in features:
        if f.layer not in dictionaries and of_neurons:
            layers = f"{min(dictionaries)}-{max(dictionaries)}"
            raise MechstudyError(f"{_written(f)}: there is no layer {f.layer}", facts={"layers": layers})
        if f.layer not in dictionaries:
            layers = ", ".join(map(str, sorted(dictionaries)))
            raise MechstudyError(
                f"{_written(f)}: layer {f.layer} has no dictionary",
                facts={"layers with one": layers or "none"},
                fix="a layer with one, or basis mixed (--basis mixed) for neurons of the others",
            )
        if not 0 <= f.feature < (width := dictionaries[f.layer].cfg.d_sae):
            neurons = isinstance(dictionaries[f.layer], Neurons)
            has = f"layer {f.layer} has neurons" if neurons else f"the dictionary of layer {f.layer} has features"
            raise MechstudyError(
                f"{_written(f)}: {has} 0-{width - 1}",
                fix="name its dictionaries, if this is a feature and no neuron" if neurons else None,
            )


def _written(feature: FeatureAt) -> str:
    """A feature as users write it: ``13/1741``, or ``13/1741@subject``."""
    at = "" if feature.position == "all" else f"@{feature.position}"
    return f"{feature.layer}/{feature.feature}{at}"


@dataclass(frozen=True)
class FeatureGroup:
    """Features that are intervened on together; ``rank`` counts groups from 1."""

    rank: int
    name: str
    members: tuple[FeatureAt, ...]


def positions_named(pair: PromptPair, name: str) -> list[int]:
    """Token indices that ``name`` means in this pair: one or none; several for ``other`` and ``all``.

    Names are the pair's own, or relative to them (`aligned_names`).
    """
    if name == OTHER:
        taken = set(pair.positions.values())
        return [i for i in range(len(pair.clean_tokens)) if i not in taken]
    if name == ALL and ALL not in pair.positions:
        return list(range(len(pair.clean_tokens)))
    if name in pair.positions:
        return [pair.positions[name]]
    return [i for i, own in enumerate(aligned_names(pair.positions, len(pair.clean_tokens))) if own == name]


def feature_groups(
    nodes: Iterable[Mapping[str, Any]],
    *,
    n_groups: int,
    group_size: int,
    rank_by: RankBy = "contrast",
    by: Literal["effect", "|effect|"] = "effect",
) -> list[FeatureGroup]:
    """Groups of features by what they do for the answer: group ``i`` holds ranks (i-1) x size + 1 to i x size.

    Args:
        nodes: aggregate.json's nodes; those of type ``feature`` need layer, feature, position and the effect.
            Features at positions without a name of their own join only where the named ones would not fill one group.
        rank_by: the effect (`rank_effect`).
        by: rank by the signed effect, the largest supporters of the answer first, or by its size.

    Returns:
        Whole groups, at most ``n_groups``; a single smaller one where there are fewer features than that.

    Raises:
        MechstudyError: no feature node, or nodes without the effect.
    """
    features = [n for n in nodes if n.get("type") == "feature" and n["position"] != ANSWER]
    if not features:
        raise MechstudyError(
            "the aggregated graph has no feature, so there is nothing to intervene on",
            fix="train dictionaries on more layers, or raise attribution.aggregate_nodes",
        )
    name, sign = rank_effect(rank_by)
    if any(n.get(name) is None for n in features):
        raise MechstudyError(
            f"the aggregated graph's features carry no {name}",
            where="interventions.rank_by",
            fix="live_effect, or graphs of this version",
        )

    def rank(n: Mapping[str, Any]) -> tuple[float, int, int, str]:
        effect = n[name]
        return (sign * effect if by == "effect" else -abs(effect), n["layer"], n["feature"], n["position"])

    named = [n for n in features if is_named(n)]
    chosen = named if len(named) >= group_size else features
    members = [FeatureAt(int(n["layer"]), int(n["feature"]), str(n["position"])) for n in sorted(chosen, key=rank)]
    count = max(1, min(n_groups, len(members) // group_size))
    parts = [members[i * group_size : (i + 1) * group_size] for i in range(count)]
    return [
        FeatureGroup(i + 1, f"features {i * group_size + 1}-{i * group_size + len(part)}", tuple(part))
        for i, part in enumerate(parts)
    ]


def rank_effect(rank_by: RankBy) -> tuple[str, int]:
    """The field of an aggregated node that ranks it, and the sign with which supporters of the answer come first.

    Effects of replacement (``contrast_effect``) are m(replaced) - m(clean): negative for a supporter. ``live_effect``
    and ``total_effect`` are what a feature adds: positive for one.
    """
    return ("contrast_effect", 1) if rank_by in ("contrast", "mean", "zero") else (rank_by, -1)


def recurring_features(nodes: Iterable[Mapping[str, Any]], config: InterventionConfig) -> list[Mapping[str, Any]]:
    """Feature nodes present on at least ``config.min_presence`` of the prompts.

    All feature nodes where those at named positions would not fill one group.
    """
    features = [node for node in nodes if node["type"] == "feature" and node["position"] != ANSWER]
    recurring = [node for node in features if node["presence"] >= config.min_presence]
    enough = sum(is_named(node) for node in recurring) >= config.group_size
    return recurring if enough else features


class NamedActivations:
    """Activations of features on some prompts, by named position.

    Stored as the rows (width D) that dictionaries read, of every token, so that any feature can be asked for later: row
    ``n`` is token ``position_N[n]`` of prompt ``prompt_N[n]``.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[int, Basis],
        pairs: Sequence[PromptPair],
        *,
        corrupted: bool = False,
        batch_tokens: int = 4096,
    ) -> None:
        if corrupted:
            require_corrupted(pairs)
        self._dictionaries = dictionaries
        self.pairs = tuple(pairs)
        self._corrupted = corrupted
        tokens = [p.corrupted_tokens if corrupted else p.clean_tokens for p in pairs]
        sites = [site_read(dictionaries[layer], layer) for layer in sorted(dictionaries)]
        parts: dict[int, list[Tensor]] = defaultdict(list)
        prompt: list[int] = []
        position: list[int] = []
        for batch in length_buckets([len(t) for t in tokens], batch_tokens):
            tokens_BT = torch.tensor([tokens[i] for i in batch])
            if sites:
                activations = captured(model, tokens_BT, sites)
                for site in sites:
                    parts[site.layer].append(activations[site].flatten(0, 1))
            for i in batch:
                prompt += [i] * len(tokens[i])
                position += range(len(tokens[i]))
        self._x = {layer: torch.cat(rows) for layer, rows in parts.items()}
        self.prompt_N, self.position_N = torch.tensor(prompt), torch.tensor(position)
        self._row_of = {place: n for n, place in enumerate(zip(prompt, position, strict=True))}
        self._means: dict[tuple[int, str], Tensor] = {}

    def means(self, layer: int, name: str) -> Float64[Tensor, " f"]:
        """Mean activation of every feature over the rows of a named position at which the dictionary applies."""
        if (layer, name) not in self._means:
            x_ND, valid_N, _ = self._at(layer, name)
            dictionary = self._dictionaries[layer]
            total = torch.zeros(dictionary.cfg.d_sae, dtype=torch.float64, device=x_ND.device)
            for start, f_nF in encode_rows(dictionary, x_ND):
                valid = valid_N[start : start + f_nF.shape[0], None]
                total += torch.where(valid, f_nF.double(), 0.0).sum(0)
            self._means[layer, name] = (total / max(1, int(valid_N.sum()))).cpu()
        return self._means[layer, name]

    def values(self, features: Iterable[FeatureAt]) -> dict[FeatureAt, dict[int, dict[int, float]]]:
        """Activations by prompt number and token position; 0 where inactive or where the dictionary does not apply.

        Positions are those of the clean prompt; those that a corrupted prompt lacks have no value.
        """
        wanted: dict[tuple[int, str], list[FeatureAt]] = defaultdict(list)
        for f in dict.fromkeys(features):
            wanted[f.layer, f.position].append(f)
        result: dict[FeatureAt, dict[int, dict[int, float]]] = {}
        for (layer, name), group in wanted.items():
            x_ND, valid_N, places = self._at(layer, name)
            ids = torch.tensor([f.feature for f in group], device=x_ND.device)
            dense = [f_nF[:, ids] for _, f_nF in encode_rows(self._dictionaries[layer], x_ND)]
            table = torch.cat(dense) if dense else x_ND.new_zeros(0, len(group))
            table = torch.where(valid_N[:, None], table.double(), 0.0).cpu()
            for f, column in zip(group, table.T.tolist(), strict=True):
                by_prompt: dict[int, dict[int, float]] = defaultdict(dict)
                for (i, at), value in zip(places, column, strict=True):
                    by_prompt[i][at] = value
                result[f] = dict(by_prompt)
        return result

    def _at(self, layer: int, name: str) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Rows that the dictionary reads [N, D], whether it applies [N], and prompt and clean position of each."""
        places: list[tuple[int, int]] = []
        rows: list[int] = []
        for i, pair in enumerate(self.pairs):
            for place in positions_named(pair, name):
                there = pair.corrupted_at(place) if self._corrupted else place
                if there is not None:
                    places.append((i, place))
                    rows.append(self._row_of[i, there])
        index = torch.tensor(rows, dtype=torch.long)
        x_ND = self._x[layer][index.to(self._x[layer].device)]
        at = self.position_N[index].to(x_ND.device)
        return x_ND, applies_at(self._dictionaries[layer], x_ND, at), places
