"""Edited forward passes: a different intervention in every row of one batch, from the lowest edited layer up.

A clean run of the same rows gives the reference and the residual stream to start from. The edited run has the same
shape and repeats the same operations, so an edit that changes nothing leaves the logits equal to the bit: the numerical
noise of a comparison is zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.circuits.active_nodes import applies_at
from mechstudy.circuits.bases import site_read
from mechstudy.dictionaries.neurons import Basis
from mechstudy.models.language_model import LanguageModel, Output
from mechstudy.models.reading import SiteReader, chained
from mechstudy.models.sites import Site

ENCODE_ROWS = 512  # rows whose dense feature activations are held at a time


@dataclass(frozen=True)
class SetFeature:
    """Set a feature's activation to ``value`` at one token position; None keeps the one it has (a sham).

    The activation it has is computed live, from the MLP input of the edited run. The change is added wherever the
    feature writes: those of a cross-layer transcoder in every layer from their own on.
    """

    layer: int
    feature: int
    position: int
    value: float | None = 0.0


@dataclass(frozen=True, eq=False)
class AddVector:
    """Add ``vector_D`` to a site at one token position."""

    site: Site
    position: int
    vector_D: Tensor


@dataclass(frozen=True, eq=False)
class ReplaceVector:
    """Write ``vector_D`` over a site at one token position."""

    site: Site
    position: int
    vector_D: Tensor


RowEdit = SetFeature | AddVector | ReplaceVector
SiteEdit = Callable[[Tensor], Tensor]
_Written = tuple[Tensor, Tensor, Tensor]  # rows and positions, and what is added there


@dataclass(frozen=True)
class CleanRun:
    """Rows without interventions: ``resid[layer]`` [B, T, D] enters that layer.

    ``logits_BV`` are those of the last position, or [B, n, V] of the n last ones, which ``logits_at`` then is.
    ``activations`` are those of other sites that were asked for.
    """

    tokens_BT: Tensor
    resid: Mapping[int, Tensor]
    logits_BV: Tensor
    logits_at: str | int = "last"
    activations: Mapping[Site, Tensor] = field(default_factory=dict)


def layer_of(edit: RowEdit) -> int:
    """The lowest block that an edit changes."""
    return edit.layer if isinstance(edit, SetFeature) else edit.site.layer


def clean_run(
    model: LanguageModel,
    tokens_BT: Int[Tensor, "b t"],
    start_layers: Iterable[int],
    *,
    logits_at: str | int = "last",
    capture: Sequence[Site] = (),
) -> CleanRun:
    """Run the rows without edits, keeping the residual stream where edited runs may start."""
    sites = [Site("resid_pre", layer) for layer in sorted(set(start_layers))]
    out = model.forward(tokens_BT, capture=[*sites, *capture], logits_at=logits_at)
    assert out.logits is not None
    resid, kept = ({s: out.activations[s] for s in some} for some in (sites, capture))
    return CleanRun(tokens_BT, {s.layer: x for s, x in resid.items()}, out.logits, logits_at, kept)


def edited_run(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    clean: CleanRun,
    rows: Sequence[Sequence[RowEdit]],
    *,
    capture: Sequence[Site] = (),
) -> Output:
    """Run the clean run's rows again, row ``i`` with the interventions ``rows[i]``.

    Starts at the highest kept layer with no edit or captured site below it.
    """
    assert len(rows) == clean.tokens_BT.shape[0], (len(rows), clean.tokens_BT.shape)
    layers = [layer_of(e) for row in rows for e in row] + [s.layer for s in capture]
    lowest = min(layers, default=model.n_layers - 1)
    start = max((layer for layer in clean.resid if layer <= lowest), default=None)
    return model.forward(
        clean.tokens_BT,
        capture=capture,
        edits=site_edits(dictionaries, rows),
        logits_at=clean.logits_at,
        start=None if start is None else (start, clean.resid[start]),
    )


def site_edits(dictionaries: Mapping[int, Basis], rows: Sequence[Sequence[RowEdit]]) -> dict[Site, SiteEdit]:
    """The interventions of all rows as one function per site, for `LanguageModel.forward`."""
    features: dict[int, list[tuple[int, SetFeature]]] = defaultdict(list)
    vectors: dict[Site, list[tuple[int, AddVector | ReplaceVector]]] = defaultdict(list)
    for row, edits in enumerate(rows):
        for edit in edits:
            if isinstance(edit, SetFeature):
                features[edit.layer].append((row, edit))
            else:
                vectors[edit.site].append((row, edit))
    chains: dict[Site, list[SiteEdit]] = defaultdict(list)
    for site, placed in vectors.items():
        chains[site].append(_vector_edit(placed))
    for layer, sets in features.items():
        reader = SiteReader(site_read(dictionaries[layer], layer))
        for site, keep in reader.edits.items():
            chains[site].append(keep)
        for site, change in _feature_edits(dictionaries[layer], layer, sets, reader).items():
            chains[site].append(change)
    return {site: chained(edits) for site, edits in chains.items()}


def encode_rows(dictionary: Basis, x_ND: Float[Tensor, "n d"]) -> Iterable[tuple[int, Float[Tensor, "rows f"]]]:
    """Dense activations [n, F] a few rows at a time, each with the number of its first row."""
    for start in range(0, x_ND.shape[0], ENCODE_ROWS):
        yield start, dictionary.encode(x_ND[start : start + ENCODE_ROWS].to(dictionary.b_enc))


def _vector_edit(placed: Sequence[tuple[int, AddVector | ReplaceVector]]) -> SiteEdit:
    def edit(x_BTD: Tensor) -> Tensor:
        x = x_BTD.clone()
        for row, e in placed:
            vector = e.vector_D.to(x)
            x[row, e.position] = vector if isinstance(e, ReplaceVector) else x[row, e.position] + vector
        return x

    return edit


def _feature_edits(
    dictionary: Basis, layer: int, sets: Sequence[tuple[int, SetFeature]], reader: SiteReader
) -> dict[Site, SiteEdit]:
    """Adds (new - live activation) x what the feature writes for every feature set, where the dictionary applies.

    The change is computed at the dictionary's own layer, and added at every layer that the feature writes to.
    """
    places = list(dict.fromkeys((row, e.position) for row, e in sets))
    number = {place: i for i, place in enumerate(places)}
    edit_turns = turns([number[row, e.position] for row, e in sets])
    own, *above = map(Site.parse, dictionary.sites_out)
    later: dict[Site, list[_Written]] = {}

    def edit(out_BTD: Tensor) -> Tensor:
        device = out_BTD.device
        row_N, position_N = torch.tensor(places, device=device).T
        which_M = torch.tensor([number[row, e.position] for row, e in sets], device=device)
        feature_M = torch.tensor([e.feature for _, e in sets], device=device)
        own_M = torch.tensor([e.value is None for _, e in sets], device=device)
        x_ND = reader.take()[row_N, position_N]
        live_M = x_ND.new_zeros(len(sets))
        for start, f_nF in encode_rows(dictionary, x_ND):
            here = (which_M >= start) & (which_M < start + f_nF.shape[0])
            live_M[here] = f_nF[which_M[here] - start, feature_M[here]].to(live_M)
        new_M = torch.tensor([e.value or 0.0 for _, e in sets], dtype=torch.float64, device=device).to(live_M)
        keep_M = own_M | ~applies_at(dictionary, x_ND, position_N)[which_M]
        change_M = torch.where(keep_M, torch.zeros_like(live_M), new_M - live_M)
        edited = out_BTD.clone()
        later.update((site, []) for site in above)
        for turn in edit_turns:
            members = torch.tensor(turn, device=device)
            row, position = row_N[which_M[members]], position_N[which_M[members]]
            written, *others = (change_M[members, None] * rows for rows in dictionary.writes(feature_M[members]))
            edited[row, position] += written.to(out_BTD)
            for site, other in zip(above, others, strict=True):
                later[site].append((row, position, other))
        return edited

    def later_edit(site: Site) -> SiteEdit:
        def add(out_BTD: Tensor) -> Tensor:
            edited = out_BTD.clone()
            for row, position, written in later.pop(site):
                edited[row, position] += written.to(out_BTD)
            return edited

        return add

    return {own: edit} | {site: later_edit(site) for site in above}


def turns(which: Sequence[int]) -> list[list[int]]:
    """The first edit of every place, the second of every place, ...: indices into ``which``.

    An accumulating ``index_put`` of repeated places adds them in whatever order its threads come: results would
    differ in the last bit from run to run.
    """
    result: list[list[int]] = []
    times: dict[int, int] = defaultdict(int)
    for i, place in enumerate(which):
        if times[place] == len(result):
            result.append([])
        result[times[place]].append(i)
        times[place] += 1
    return result
