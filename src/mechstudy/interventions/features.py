"""Features at named positions: the groups to intervene on, and what they do on prompts left alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.aggregate import OTHER, node_id
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.interventions.engine import encode_rows, valid_rows
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


@dataclass(frozen=True, order=True)
class FeatureAt:
    """A feature of a layer's dictionary at a named position; prints as its node id, ``f.12.345@subject``.

    The name ``other`` means all positions that carry no name.
    """

    layer: int
    feature: int
    position: str

    def __str__(self) -> str:
        return node_id("feature", self.layer, self.feature, self.position)

    @classmethod
    def parse(cls, text: str) -> FeatureAt:
        """Inverse of ``str``."""
        found = re.fullmatch(r"f\.(\d+)\.(\d+)@(.+)", text)
        if found is None:
            raise MechstudyError(f"{text!r} is not a feature node", fix="write f.layer.feature@position")
        return cls(int(found[1]), int(found[2]), found[3])

    def as_json(self) -> dict[str, Any]:
        """Its form in summary.json."""
        return {"layer": self.layer, "feature": self.feature, "position": self.position}


@dataclass(frozen=True)
class FeatureGroup:
    """Features intervened on together; ``rank`` counts groups from 1."""

    rank: int
    name: str
    members: tuple[FeatureAt, ...]


def positions_named(pair: PromptPair, name: str) -> list[int]:
    """Token indices that ``name`` means in this pair: one, none, or for ``other`` all without a name."""
    if name == OTHER:
        taken = set(pair.positions.values())
        return [i for i in range(len(pair.clean_tokens)) if i not in taken]
    return [pair.positions[name]] if name in pair.positions else []


def feature_groups(
    nodes: Iterable[Mapping[str, Any]], *, n_groups: int, group_size: int, rank_by: str = "total_effect"
) -> list[FeatureGroup]:
    """Group ``i`` holds the features ranked (i-1) x size + 1 to i x size by falling ``rank_by`` (signed).

    Args:
        nodes: aggregate.json's nodes; those of type ``feature`` need layer, feature, position, total_effect.
            Features at ``other`` positions join only where the named ones would not fill one group.

    Returns:
        Whole groups, at most ``n_groups``; a single smaller one where there are fewer features than that.

    Raises:
        MechstudyError: no feature node, or nodes without ``total_effect``.
    """
    found = [n for n in nodes if n.get("type") == "feature"]
    if not found:
        raise MechstudyError(
            "the aggregated graph has no feature, so there is nothing to intervene on",
            fix="train dictionaries on more layers, or raise attribution.aggregate_nodes",
        )
    if any(n.get(rank_by) is None for n in found):
        raise MechstudyError(f"the aggregated graph's features carry no {rank_by}")
    named = [n for n in found if n["position"] != OTHER]
    chosen = named if len(named) >= group_size else found
    ranked = sorted(chosen, key=lambda n: (-n[rank_by], n["layer"], n["feature"], n["position"]))
    members = [FeatureAt(int(n["layer"]), int(n["feature"]), str(n["position"])) for n in ranked]
    count = max(1, min(n_groups, len(members) // group_size))
    parts = [members[i * group_size : (i + 1) * group_size] for i in range(count)]
    return [
        FeatureGroup(i + 1, f"features {i * group_size + 1}-{i * group_size + len(part)}", tuple(part))
        for i, part in enumerate(parts)
    ]


class NamedActivations:
    """MLP inputs of some prompts at every position, and what features do there.

    Row ``n`` stands for token ``position[n]`` of prompt ``prompt[n]``. Kept as MLP inputs (width D), so that
    any feature can be asked for later.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[int, Dictionary],
        pairs: Sequence[PromptPair],
        *,
        corrupted: bool = False,
        batch_tokens: int = 4096,
    ) -> None:
        self._dictionaries = dictionaries
        self.pairs = tuple(pairs)
        tokens = [p.corrupted_tokens if corrupted else p.clean_tokens for p in pairs]
        sites = [Site("mlp_in", layer) for layer in sorted(dictionaries)]
        parts: dict[int, list[Tensor]] = defaultdict(list)
        prompt: list[int] = []
        position: list[int] = []
        for batch in length_buckets([len(t) for t in tokens], batch_tokens):
            tokens_BT = torch.tensor([tokens[i] for i in batch])
            if sites:
                found = captured(model, tokens_BT, sites)
                for site in sites:
                    parts[site.layer].append(found[site].flatten(0, 1))
            for i in batch:
                prompt += [i] * len(tokens[i])
                position += range(len(tokens[i]))
        self._x = {layer: torch.cat(rows) for layer, rows in parts.items()}
        self.prompt_N, self.position_N = torch.tensor(prompt), torch.tensor(position)
        places: dict[tuple[int, int], int] = {key: n for n, key in enumerate(zip(prompt, position, strict=True))}
        names = {name for p in pairs for name in p.positions} | {OTHER}
        self._rows = {
            name: [places[i, at] for i, p in enumerate(pairs) for at in positions_named(p, name)]
            for name in sorted(names)
        }
        self._means: dict[tuple[int, str], Tensor] = {}

    def means(self, layer: int, name: str) -> Tensor:
        """Mean activation of every feature over the valid rows of a named position, [F] float64."""
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
        """Activations by prompt number and token position; 0 where inactive or the dictionary is not valid."""
        wanted: dict[tuple[int, str], list[FeatureAt]] = defaultdict(list)
        for f in dict.fromkeys(features):
            wanted[f.layer, f.position].append(f)
        result: dict[FeatureAt, dict[int, dict[int, float]]] = {}
        for (layer, name), group in wanted.items():
            x_ND, valid_N, rows = self._at(layer, name)
            ids = torch.tensor([f.feature for f in group], device=x_ND.device)
            dense = [f_nF[:, ids] for _, f_nF in encode_rows(self._dictionaries[layer], x_ND)]
            table = torch.cat(dense) if dense else x_ND.new_zeros(0, len(group))
            table = torch.where(valid_N[:, None], table.double(), 0.0).cpu()
            for f, column in zip(group, table.T.tolist(), strict=True):
                by_prompt: dict[int, dict[int, float]] = defaultdict(dict)
                for row, value in zip(rows, column, strict=True):
                    by_prompt[int(self.prompt_N[row])][int(self.position_N[row])] = value
                result[f] = dict(by_prompt)
        return result

    def _at(self, layer: int, name: str) -> tuple[Tensor, Tensor, list[int]]:
        """(MLP inputs [N, D], valid [N], row numbers) of a named position."""
        rows = self._rows.get(name, [])
        index = torch.tensor(rows, dtype=torch.long)
        x_ND = self._x[layer][index.to(self._x[layer].device)]
        at = self.position_N[index].to(x_ND.device)
        return x_ND, valid_rows(self._dictionaries[layer], x_ND, at), rows
