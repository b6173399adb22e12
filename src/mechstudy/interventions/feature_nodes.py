"""Features and errors of transcoders at named positions as nodes of circuits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.active_nodes import applies_at
from mechstudy.circuits.bases import check_bases, site_read
from mechstudy.circuits.components import summed_by_name, tokens_replaced
from mechstudy.circuits.donors import Donors, DonorSource, Key
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.prompt_record import node_id
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.interventions.engine import encode_rows
from mechstudy.interventions.features import FeatureAt, check_features
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.reading import SiteReader
from mechstudy.models.sites import Site


@dataclass(frozen=True, order=True)
class ErrorAt:
    """What an MLP writes beyond its transcoder's reconstruction, at a named position; prints as ``error.12@last``."""

    layer: int
    position: str

    def __str__(self) -> str:
        return node_id("error", self.layer, position=self.position)


class FeatureNodes:
    """Features of transcoders at named positions, and with ``errors`` each layer's error: nodes in order of layers.

    A feature's value is its activation, 0 where its transcoder does not apply (`circuits.applies_at`); replacing it
    adds (donor - live activation) x its decoder row to what the MLP writes. An error's value is what the MLP writes
    minus the whole reconstruction, skip path included; the skip path itself is no node and runs live. Replacing all
    features of a layer and its error by a donor whose MLP input is the live one gives what the donor's MLP wrote.

    Args:
        model: the model.
        dictionaries: transcoders by layer, which write at their own layer.
        positions: the names of positions.
        features: the nodes; by default every feature at every name. Others are left as they are.
        errors: whether errors are nodes.

    Raises:
        MechstudyError: dictionaries that are not transcoders, or are cross-layer ones; a feature or a position that
            does not exist; no node.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[int, Dictionary],
        positions: NamedPositions,
        features: Iterable[FeatureAt] | None = None,
        *,
        errors: bool = False,
    ) -> None:
        check_bases(dictionaries, "nodes of features", model)
        if crossing := [layer for layer, one in dictionaries.items() if len(one.sites_out) > 1]:
            raise MechstudyError(f"layer {crossing[0]}: features of a cross-layer transcoder cannot be kept or cut yet")
        self.positions = positions
        self._dictionaries = dict(sorted(dictionaries.items()))
        chosen = None if features is None else list(dict.fromkeys(features))
        check_features(chosen or (), dictionaries)
        self._layers: dict[Site, _Layer] = {}
        self.slices: dict[Site, slice] = {}
        nodes: list[FeatureAt | ErrorAt] = []
        for layer, dictionary in self._dictionaries.items():
            members = (
                [FeatureAt(layer, f, name) for f in range(dictionary.cfg.d_sae) for name in positions.names]
                if chosen is None
                else sorted(f for f in chosen if f.layer == layer)
            )
            of_errors = [ErrorAt(layer, name) for name in positions.names] if errors else []
            if not members and not of_errors:
                continue
            site = Site("mlp_out", layer)
            self.slices[site] = slice(len(nodes), len(nodes) + len(members) + len(of_errors))
            self._layers[site] = _Layer(dictionary, layer, positions, members, errors)
            nodes += [*members, *of_errors]
        if not nodes:
            raise MechstudyError("there are no features and no errors to keep or cut")
        self.nodes = tuple(nodes)

    @property
    def reads(self) -> tuple[Site, ...]:
        """What transcoders read, and with errors what MLPs write."""
        return tuple(site for one in self._layers.values() for site in one.reads)

    def values(self, activations: Mapping[Site, Tensor]) -> dict[Key, Tensor]:
        """Activations of each layer's features, ``("features", layer)``, and errors, ``("error", layer)``."""
        return {key: value for one in self._layers.values() for key, value in one.values(activations).items()}

    def effects(
        self, site: Site, differences: Mapping[Key, Tensor], gradient_BTW: Float[Tensor, "b t d"], donors: Donors
    ) -> Float64[Tensor, "b n"]:
        """Difference of activations x gradient along decoder rows; difference of errors x gradient."""
        return self._layers[site].effects(differences, gradient_BTW, donors)

    def change(self, site: Site, differences: Mapping[Key, Tensor]) -> Float[Tensor, "b t d"]:
        """What the MLP writes more when all of a layer's nodes are replaced."""
        return self._layers[site].change(differences)

    def edits(self, replaced_CN: Bool[Tensor, "c n"], donors: Donors) -> dict[Site, Edit]:
        """Edits that replace nodes, for rows of every circuit with all prompts, one circuit after the other."""
        edits: dict[Site, Edit] = {}
        for site, part in self.slices.items():
            if bool((here_CN := replaced_CN[:, part]).any()):
                edits |= self._layers[site].edits(here_CN, donors)
        return edits


class _Layer:
    """The nodes of one layer: ``members`` in order, then an error at each name."""

    def __init__(
        self,
        dictionary: Dictionary,
        layer: int,
        positions: NamedPositions,
        members: Sequence[FeatureAt],
        errors: bool,
    ) -> None:
        self._dictionary, self._layer, self._errors, self._n_names = dictionary, layer, errors, len(positions.names)
        number = {name: i for i, name in enumerate(positions.names)}
        if unknown := [f for f in members if f.position not in number]:
            raise MechstudyError(
                f"{unknown[0]}: the nodes have no position {unknown[0].position!r}",
                facts={"positions": ", ".join(positions.names)},
            )
        self._ids = sorted({f.feature for f in members})
        column = {feature: i for i, feature in enumerate(self._ids)}
        self._column_M = torch.tensor([column[f.feature] for f in members], dtype=torch.long)
        self._name_M = torch.tensor([number[f.position] for f in members], dtype=torch.long)
        self._out, self._read = Site("mlp_out", layer), site_read(dictionary, layer)
        self.reads = (self._read, self._out) if errors else (self._read,)

    @property
    def _decoder_FD(self) -> Tensor:
        return self._dictionary.decoder_rows(self._ids)

    def values(self, activations: Mapping[Site, Tensor]) -> dict[Key, Tensor]:
        f_BTF, written_BTD = self._of(activations[self._read])
        values: dict[Key, Tensor] = {("features", self._layer): f_BTF}
        if self._errors:
            values["error", self._layer] = activations[self._out] - written_BTD
        return values

    def _of(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Activations of the layer's features [B, T, F], and the whole reconstruction (0 without errors)."""
        rows, length = x_BTD.shape[:2]
        x_ND = x_BTD.flatten(0, 1)
        position_N = torch.arange(length, device=x_BTD.device).repeat(rows)
        valid_N1 = applies_at(self._dictionary, x_ND, position_N)[:, None]
        ids = torch.tensor(self._ids, dtype=torch.long, device=x_BTD.device)
        f_NF, written_ND = x_ND.new_zeros(len(x_ND), len(ids)), torch.zeros_like(x_ND)
        for first, f_nF in encode_rows(self._dictionary, x_ND):
            part = slice(first, first + len(f_nF))
            f_NF[part] = torch.where(valid_N1[part], f_nF[:, ids].to(f_NF), 0)
            if self._errors:
                whole = self._dictionary.completed(f_nF, x_ND[part].to(f_nF))
                written_ND[part] = torch.where(valid_N1[part], whole.to(written_ND), 0)
        return torch.unflatten(f_NF, 0, (rows, length)), torch.unflatten(written_ND, 0, (rows, length))

    def effects(self, differences: Mapping[Key, Tensor], gradient_BTD: Tensor, donors: Donors) -> Tensor:
        along_BTF = gradient_BTD @ self._decoder_FD.to(gradient_BTD).T
        features_BTF = (differences["features", self._layer] * along_BTF).double()
        of_members_BM = summed_by_name(features_BTF, donors, self._n_names)[:, self._column_M, self._name_M]
        if not self._errors:
            return of_members_BM
        error_BT1 = (differences["error", self._layer] * gradient_BTD).double().sum(-1, keepdim=True)
        return torch.cat([of_members_BM, summed_by_name(error_BT1, donors, self._n_names)[:, 0]], 1)

    def change(self, differences: Mapping[Key, Tensor]) -> Tensor:
        change_BTF = differences["features", self._layer]
        written: Tensor = change_BTF @ self._decoder_FD.to(change_BTF)
        return written + differences["error", self._layer] if self._errors else written

    def edits(self, replaced_CM: Tensor, donors: Donors) -> dict[Site, Edit]:
        n = len(self._column_M)
        of_features_CFN = torch.zeros(len(replaced_CM), len(self._ids), self._n_names, dtype=torch.bool)
        of_features_CFN[:, self._column_M, self._name_M] = replaced_CM[:, :n]
        replaced_CBTF = tokens_replaced(of_features_CFN, donors)
        error_CBT1 = tokens_replaced(replaced_CM[:, None, n:], donors) if self._errors else None
        reader = SiteReader(self._read)

        def edit(out_RTD: Tensor) -> Tensor:
            f_RTF, written_RTD = self._of(reader.take())
            donor_RTF = _of_rows(donors.values["features", self._layer], f_RTF)
            change = torch.where(replaced_CBTF.flatten(0, 1).to(out_RTD.device), donor_RTF - f_RTF, 0)
            edited: Tensor = out_RTD + (change @ self._decoder_FD.to(change)).to(out_RTD)
            if error_CBT1 is not None:
                donor_RTD = _of_rows(donors.values["error", self._layer], out_RTD)
                moved = donor_RTD - (out_RTD - written_RTD)
                edited = edited + torch.where(error_CBT1.flatten(0, 1).to(out_RTD.device), moved, 0)
            return edited

        return {**reader.edits, self._out: edit}


def _of_rows(donor_BTW: Tensor, like_RTW: Tensor) -> Tensor:
    return donor_BTW.to(like_RTW).repeat(len(like_RTW) // len(donor_BTW), 1, 1)


@torch.no_grad()
def active_at(
    model: LanguageModel,
    dictionaries: Mapping[int, Dictionary],
    positions: NamedPositions,
    pairs: Sequence[PromptPair],
    *,
    batch_tokens: int = 4096,
) -> list[FeatureAt]:
    """Features that are active at a named position of some pair's clean or corrupted prompt, in order.

    A token of a corrupted prompt has the name of the clean prompt's token whose place it has.
    """
    active: dict[int, set[tuple[int, int]]] = defaultdict(set)
    nodes = FeatureNodes(model, dictionaries, positions)
    corrupted = DonorSource(model, [nodes], "corrupted", positions, batch_tokens=batch_tokens)
    for batch in length_buckets([len(pair.clean_tokens) for pair in pairs], batch_tokens):
        some = [pairs[i] for i in batch]
        values = nodes.values(captured(model, torch.tensor([pair.clean_tokens for pair in some]), nodes.reads))
        with_corrupted = [pair for pair in some if pair.has_corrupted]
        there = corrupted.donors(with_corrupted) if with_corrupted else None
        for layer in dictionaries:
            _note(active[layer], values["features", layer], positions.numbers(some))
            if there is not None:
                f_BTF = there.values["features", layer]
                _note(active[layer], f_BTF * there.has_BT[..., None].to(f_BTF), there.position_BT)
    return sorted(FeatureAt(layer, f, positions.names[n]) for layer, places in active.items() for f, n in places)


def _note(active: set[tuple[int, int]], f_BTF: Tensor, name_BT: Tensor) -> None:
    row, token, feature = f_BTF.nonzero().cpu().unbind(1)
    active |= set(zip(feature.tolist(), name_BT[row, token].tolist(), strict=True))
