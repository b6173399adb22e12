"""Features of any basis and errors at named positions as nodes of circuits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Donors, DonorSource, Key
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.node_names import node_id
from mechstudy.circuits.node_sets import Nodes, nodes_of
from mechstudy.circuits.node_values import NodeRecorder, sites_of, where_applied
from mechstudy.circuits.universe import Shares, at_tokens, change_of, is_replaced
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.engine import ENCODE_ROWS
from mechstudy.interventions.features import FeatureAt, check_features
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.reading import SiteReader, merged
from mechstudy.models.sites import Site


@dataclass(frozen=True, order=True)
class ErrorAt:
    """What a layer's site holds beyond its features, at a named position; prints as ``error.12@last``."""

    layer: int
    position: str

    def __str__(self) -> str:
        return node_id("error", self.layer, position=self.position)


class FeatureNodes:
    """Features of any basis at named positions, and with ``errors`` each layer's error: nodes in order of layers.

    A feature's value is its activation, 0 where features do not apply (`circuits.applies_at`). Replacing it adds
    (donor - own activation) x what it writes, at every site that it writes; where features do not apply on the prompt
    they cannot be set, and a mean is that over tokens at which they apply. An error's value is what the site holds
    beyond features and what passes (a decoder's bias, a skip path, which run live). Replacing all features of a layer
    and its error by a donor whose layer reads what the running one reads gives what the donor's site held.

    Args:
        model: the model.
        bases: transcoders, layers of a cross-layer transcoder, SAEs or neurons, by layer.
        positions: the names of positions.
        features: the nodes; by default every feature at every name. Others are left as they are.
        errors: whether errors are nodes. Neurons have one at tokens where they do not apply, the first of a prompt.

    Raises:
        MechstudyError: a basis of another site or layer; a feature or a position that does not exist; no node.
    """

    def __init__(
        self,
        model: LanguageModel,
        bases: Mapping[int, Basis],
        positions: NamedPositions,
        features: Iterable[FeatureAt] | None = None,
        *,
        errors: bool = False,
    ) -> None:
        self.positions = positions
        chosen = None if features is None else list(dict.fromkeys(features))
        check_features(chosen or (), bases)
        self._layers: dict[Site, _Layer] = {}
        self.slices: dict[Site, slice] = {}
        nodes: list[FeatureAt | ErrorAt] = []
        for layer, one in nodes_of(model, bases, "nodes of features").items():
            members = (
                [FeatureAt(layer, f, name) for f in range(bases[layer].cfg.d_sae) for name in positions.names]
                if chosen is None
                else sorted(f for f in chosen if f.layer == layer)
            )
            of_errors = [ErrorAt(layer, name) for name in positions.names] if errors else []
            if not members and not of_errors:
                continue
            self.slices[one.site] = slice(len(nodes), len(nodes) + len(members) + len(of_errors))
            self._layers[one.site] = _Layer(one, layer, positions, members, errors)
            nodes += [*members, *of_errors]
        if not nodes:
            raise MechstudyError("there are no features and no errors to keep or cut")
        self.nodes = tuple(nodes)
        self.writes = {site for one in self._layers.values() for site in one.nodes.writes_at}
        self._crossing = any(len(one.nodes.writes_at) > 1 for one in self._layers.values())

    @property
    def reads(self) -> tuple[Site, ...]:
        """What features read, and their own sites."""
        return tuple(sites_of(dict(enumerate(one.nodes for one in self._layers.values()))))

    def values(self, activations: Mapping[Site, Tensor]) -> dict[Key, Tensor]:
        """Activations of each layer's features, ``("features", layer)``, and what errors are computed from."""
        ahead = self._ahead()
        return {key: value for one in self._layers.values() for key, value in one.values(activations, ahead).items()}

    def edits(self, share_RN: Shares, donors: Donors, sites: Collection[Site] | None = None) -> dict[Site, Edit]:
        """Edits that replace nodes (`NodeSet.edits`)."""
        ahead, written_below = self._ahead(), self._ahead()
        every = self._crossing and is_replaced(share_RN)  # an error needs what all layers below write
        of_layers = []
        for site, part in reversed(self.slices.items()):  # what is written from below is added after a site's own edit
            here_RM = share_RN[:, part]
            if (every or is_replaced(here_RM)) and (sites is None or site in sites):
                of_layers.append(self._layers[site].edits(here_RM, donors, ahead, written_below))
        return merged(of_layers)

    def _ahead(self) -> _Ahead:
        return {site: {} for site in self.writes}


_Ahead = dict[Site, dict[int, Tensor]]
"""What features of each layer write at each site in the running pass."""


class _Layer:
    """The nodes of one layer: ``members`` in order, then an error at each name."""

    def __init__(
        self, nodes: Nodes, layer: int, positions: NamedPositions, members: Sequence[FeatureAt], errors: bool
    ) -> None:
        self.nodes, self._layer, self._errors, self._n_names = nodes, layer, errors, len(positions.names)
        number = {name: i for i, name in enumerate(positions.names)}
        if unknown := [f for f in members if f.position not in number]:
            raise MechstudyError(
                f"{unknown[0]}: the nodes have no position {unknown[0].position!r}",
                facts={"positions": ", ".join(positions.names)},
            )
        ids = sorted({f.feature for f in members})
        column = {feature: i for i, feature in enumerate(ids)}
        self._ids = torch.tensor(ids, dtype=torch.long)
        self._column_M = torch.tensor([column[f.feature] for f in members], dtype=torch.long)
        self._name_M = torch.tensor([number[f.position] for f in members], dtype=torch.long)

    def values(self, at: Mapping[Site, Tensor], ahead: _Ahead, first: int = 0) -> dict[Key, Tensor]:
        """Values at every token from ``first`` on; what all features write goes into ``ahead``, if errors are nodes."""
        nodes, x_BTD = self.nodes, at[self.nodes.site]
        rows, length = x_BTD.shape[:2]
        flat = {site: at[site].flatten(0, 1) for site in (*nodes.reads, nodes.site)}
        position_N = torch.arange(first, first + length, device=x_BTD.device).repeat(rows)
        parts = []
        for start in range(0, len(position_N), ENCODE_ROWS):
            part = slice(start, start + ENCODE_ROWS)
            f_nF, applies_n = nodes.activations({site: x[part] for site, x in flat.items()}, position_N[part])
            written = nodes.written(f_nF) if self._errors else ()
            parts.append((f_nF[:, self._ids.to(f_nF.device)], applies_n[:, None].to(f_nF), *written))
        columns = (torch.unflatten(torch.cat(column), 0, (rows, length)) for column in zip(*parts, strict=True))
        features, applies, *written_at = columns
        values: dict[Key, Tensor] = {self._key("features"): features, self._key("applies"): applies}
        if self._errors:
            for site, written_BTD in zip(nodes.writes_at, written_at, strict=True):
                ahead[site][self._layer] = written_BTD
            values[self._key("site")] = x_BTD
            values[self._key("written")] = reduce(add, ahead[nodes.site].values())
            if nodes.has_passing:
                values[self._key("passing")] = nodes.passing(at)
        return values

    def edits(self, share_RM: Tensor, donors: Donors, ahead: _Ahead, from_below: _Ahead) -> dict[Site, Edit]:
        n, nodes = len(self._column_M), self.nodes
        of_features_RFN = share_RM.new_zeros(len(share_RM), len(self._ids), self._n_names)
        of_features_RFN[:, self._column_M, self._name_M] = share_RM[:, :n]
        share_RTF = at_tokens(of_features_RFN, donors)
        share_RT1 = at_tokens(share_RM[:, None, n:], donors) if self._errors else None
        readers = {}
        if donors.relative_to is None:
            readers = {site: SiteReader(site) for site in nodes.reads if site != nodes.site}
        own_site, *above = nodes.writes_at

        def edit(out_RTD: Tensor) -> Tensor:
            if donors.relative_to is None:
                at = {site: reader.take() for site, reader in readers.items()}
                own = self.values({**at, own_site: out_RTD}, ahead, donors.first)
            else:
                own = self._of_rows(donors.relative_to, out_RTD)
            donor, applies = self._of_rows(donors.values, out_RTD), own[self._key("applies")]
            set_RTF = where_applied(donor[self._key("features")], donor[self._key("applies")]) * applies
            change_RTF = change_of(share_RTF, set_RTF, own[self._key("features")])
            here_RTD, *others = nodes.written(change_RTF, self._ids)
            for site, written_RTD in zip(above, others, strict=True):
                from_below[site][self._layer] = written_RTD
            edited: Tensor = out_RTD + here_RTD.to(out_RTD)
            if share_RT1 is not None:
                edited = edited + change_of(share_RT1, self._error(donor, applies), self._error(own, applies))
            return edited

        def add_from_below(site: Site) -> Edit:
            return lambda out_RTD: out_RTD + from_below[site][self._layer].to(out_RTD)

        of_readers = {site: keep for reader in readers.values() for site, keep in reader.edits.items()}
        return {**of_readers, own_site: edit} | {site: add_from_below(site) for site in above}

    def _error(self, values: Mapping[Key, Tensor], applies: Tensor) -> Tensor:
        """What the site's value is beyond features and what passes, on a prompt where they apply or do not."""
        known = where_applied(values[self._key("written")], values[self._key("applies")])
        if self.nodes.has_passing:
            known = known + values[self._key("passing")]
        return values[self._key("site")] - applies * known

    def _of_rows(self, values: Mapping[Key, Tensor], like_RTD: Tensor) -> dict[Key, Tensor]:
        """The layer's values of the prompts, once for each circuit."""
        parts = ("features", "applies", "site", "written", "passing")
        there = {key: values[key] for part in parts if (key := self._key(part)) in values}
        return {key: x.to(like_RTD).repeat(len(like_RTD) // len(x), 1, 1) for key, x in there.items()}

    def _key(self, part: str) -> Key:
        return (part, self._layer)


@torch.no_grad()
def active_at(
    model: LanguageModel,
    bases: Mapping[int, Basis],
    positions: NamedPositions,
    pairs: Sequence[PromptPair],
    *,
    batch_tokens: int = 4096,
) -> list[FeatureAt]:
    """Features that are active at a named position of some pair's clean or corrupted prompt, in order.

    A token of a corrupted prompt has the name of the clean prompt's token whose place it has.
    """
    active: dict[int, set[tuple[int, int]]] = defaultdict(set)
    recorder = NodeRecorder(nodes_of(model, bases, "nodes of features"))
    corrupted = DonorSource(model, [recorder], "corrupted", positions, batch_tokens=batch_tokens)
    for batch in length_buckets([len(pair.clean_tokens) for pair in pairs], batch_tokens):
        some = [pairs[i] for i in batch]
        at = captured(model, torch.tensor([pair.clean_tokens for pair in some]), recorder.reads)
        values = recorder.values(at)
        with_corrupted = [pair for pair in some if pair.has_corrupted]
        there = corrupted.donors(with_corrupted) if with_corrupted else None
        for layer in bases:
            _note(active[layer], values["features", layer], positions.numbers(some))
            if there is not None:
                f_BTF = there.values["features", layer]
                _note(active[layer], f_BTF * there.has_BT[..., None].to(f_BTF), there.position_BT)
    return sorted(FeatureAt(layer, f, positions.names[n]) for layer, places in active.items() for f, n in places)


def _note(active: set[tuple[int, int]], f_BTF: Tensor, name_BT: Tensor) -> None:
    row, token, feature = f_BTF.nonzero().cpu().unbind(1)
    active |= set(zip(feature.tolist(), name_BT[row, token].tolist(), strict=True))
