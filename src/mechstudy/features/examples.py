"""Examples, activation ranges, frequencies and logit effects of features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.features.activation_ranges import ActivationRange, RangeCollector
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

Example = dict[str, Any]


@dataclass
class FeatureStatistics:
    """Statistics of one layer's chosen features over a corpus. n features, E examples.

    ``frequency_n``: share of rows where the feature is above zero; ``mean_n``: the sum over rows divided by the number
    of these; ``top_value_nE`` and ``top_place_nE`` (document x context + position, -1 if there is none): at most one
    example per document, strongest first. Neurons are below zero too: the strongest have the largest magnitude.
    """

    features: tuple[int, ...]
    frequency_n: Float[Tensor, " n"]
    mean_n: Float[Tensor, " n"]
    max_n: Float[Tensor, " n"]
    top_value_nE: Float[Tensor, "n e"]
    top_place_nE: Int[Tensor, "n e"]
    acts_NBT: Float[Tensor, "n b t"]
    """Activations on the first documents, in bfloat16, zero at first positions; as many as were asked for."""
    ranges: tuple[ActivationRange, ...] = field(default=(), repr=False)
    """Histogram and drawn activations of each feature over all rows but first positions; empty if not asked for."""


class _Collector:
    def __init__(
        self, dictionary: Basis, features: Sequence[int], n_examples: int, keep: int = 0, *, ranges: bool = False
    ) -> None:
        self.dictionary, self.features, self.n_examples = dictionary, tuple(features), n_examples
        self.keep, self.kept = keep, torch.zeros(len(self.features), 0, 0, dtype=torch.bfloat16)
        self.signed = isinstance(dictionary, Neurons)
        self.ranges = RangeCollector(self.features, signed=self.signed) if ranges else None
        n = len(self.features)
        self.count = torch.zeros(n)
        self.total = torch.zeros(n, dtype=torch.float64)
        self.rows = 0
        self.values = torch.zeros(n, n_examples)
        self.places = torch.full((n, n_examples), -1, dtype=torch.long)

    def add(self, x_BTD: Tensor, first_document: int) -> None:
        """Add the activations of documents at the dictionary's input site; first positions are not counted."""
        acts_BTn = self.encode(x_BTD)
        if (left := self.keep - first_document) > 0:
            new_NBT = acts_BTn[:left].permute(2, 0, 1).to(torch.bfloat16).cpu()
            self.kept = torch.cat([self.kept, new_NBT], 1) if self.kept.numel() else new_NBT
        if self.ranges is not None:
            self.ranges.add(acts_BTn, first_document)
        fires = acts_BTn > 0
        self.count += fires.sum((0, 1)).cpu()
        self.total += acts_BTn.sum((0, 1), dtype=torch.float64).cpu()
        self.rows += acts_BTn.shape[0] * (acts_BTn.shape[1] - 1)
        best_Bn, at_Bn = (acts_BTn.abs() if self.signed else acts_BTn).max(1)
        documents = torch.arange(len(x_BTD))[:, None] + first_document
        values = torch.cat([self.values, best_Bn.T.cpu().float()], 1)
        places = torch.cat([self.places, (documents * x_BTD.shape[1] + at_Bn.cpu()).T], 1)
        self.values, order = values.topk(self.n_examples, 1)
        self.places = torch.where(self.values > 0, places.gather(1, order), -1)

    def encode(self, x_BTD: Tensor) -> Tensor:
        """Activations of the chosen features [B, T, n], zero at first positions."""
        x = x_BTD.to(self.dictionary.b_enc)
        acts = self.dictionary.encode(x.flatten(0, 1))[:, list(self.features)]
        acts = acts.view(*x.shape[:2], -1).clone()
        acts[:, 0] = 0
        return acts

    def result(self) -> FeatureStatistics:
        """Statistics of the documents added so far."""
        return FeatureStatistics(
            self.features,
            self.count / max(1, self.rows),
            (self.total / self.count.clamp_min(1)).float(),
            self.values[:, 0],
            self.values,
            self.places,
            self.kept,
            () if self.ranges is None else self.ranges.result(),
        )


def collect_features(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    chosen: dict[int, Sequence[int]],
    token_rows_BT: Int[Tensor, "b t"],
    n_examples: int,
    *,
    keep: int = 0,
    ranges: bool = True,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> dict[int, FeatureStatistics]:
    """Statistics of chosen features in one pass over the documents; memory grows only with those that are kept.

    Args:
        model: the model.
        dictionaries: by layer.
        chosen: features of each layer.
        token_rows_BT: documents of equal length.
        n_examples: examples per feature, at most one per document.
        keep: first documents whose activations are kept.
        ranges: whether histograms are made and activations drawn from intervals (see `ActivationRange`).
        batch_tokens: tokens of a forward pass.
        progress: receives progress.

    Returns:
        Statistics by layer.
    """
    progress = progress or NullProgress()
    collectors = {
        layer: _Collector(dictionaries[layer], chosen[layer], n_examples, keep, ranges=ranges)
        for layer in sorted(chosen)
    }
    sites = {layer: Site.parse(dictionaries[layer].cfg.site_in) for layer in collectors}
    size = max(1, batch_tokens // token_rows_BT.shape[1])
    with progress.bar("feature examples", token_rows_BT.numel(), "tokens") as bar:
        for first in range(0, len(token_rows_BT), size):
            part = token_rows_BT[first : first + size]
            activations = model.forward(
                part, capture=list(sites.values()), stop_after=max(collectors), logits_at=None
            ).activations
            for layer, collector in collectors.items():
                collector.add(activations[sites[layer]], first)
            bar.advance(part.numel())
    return {layer: collector.result() for layer, collector in collectors.items()}


def example_windows(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    statistics: dict[int, FeatureStatistics],
    token_rows_BT: Int[Tensor, "b t"],
    window: int,
    *,
    batch_tokens: int = 4096,
) -> Iterator[tuple[int, int, list[Example], list[list[Example]]]]:
    """Examples of each feature: the tokens around its peak with its activation on each.

    Args:
        model: the model.
        dictionaries: by layer.
        statistics: of `collect_features`.
        token_rows_BT: the same documents.
        window: tokens of an example.
        batch_tokens: tokens of a forward pass.

    Yields:
        (layer, feature, top examples, examples of each of its intervals), an example being {tokens, activations, peak,
        document}. The peak of one of an interval is the activation that was drawn: there may be larger ones beside it.
    """
    context = token_rows_BT.shape[1]
    documents = sorted({place // context for stats in statistics.values() for place in _places(stats)})
    row_of = {document: row for row, document in enumerate(documents)}
    acts = _activations_of(model, dictionaries, statistics, token_rows_BT, documents, batch_tokens)

    def example(layer: int, i: int, place: int) -> Example:
        document, peak = divmod(place, context)
        start = max(0, min(peak - window // 2, context - window))
        values = acts[layer][row_of[document], start : start + window, i]
        return {
            "tokens": model.token_strings(token_rows_BT[document, start : start + window].tolist()),
            "activations": [round(float(v), 4) for v in values],
            "peak": peak - start,
            "document": document,
        }

    for layer, stats in statistics.items():
        for i, feature in enumerate(stats.features):
            top = [example(layer, i, place) for place in stats.top_place_nE[i].tolist() if place >= 0]
            intervals = stats.ranges[i].intervals if stats.ranges else ()
            yield layer, feature, top, [[example(layer, i, place) for place in one.places] for one in intervals]


def _places(stats: FeatureStatistics) -> Iterator[int]:
    yield from (place for place in stats.top_place_nE.flatten().tolist() if place >= 0)
    yield from (place for of in stats.ranges for interval in of.intervals for place in interval.places)


def _activations_of(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    statistics: dict[int, FeatureStatistics],
    token_rows_BT: Tensor,
    documents: list[int],
    batch_tokens: int,
) -> dict[int, Tensor]:
    """[documents, T, n] activations of the chosen features on the chosen documents, as half precision."""
    collectors = {layer: _Collector(dictionaries[layer], stats.features, 1) for layer, stats in statistics.items()}
    sites = {layer: Site.parse(dictionaries[layer].cfg.site_in) for layer in collectors}
    parts: dict[int, list[Tensor]] = {layer: [] for layer in collectors}
    size = max(1, batch_tokens // token_rows_BT.shape[1])
    for first in range(0, len(documents), size):
        rows = token_rows_BT[documents[first : first + size]]
        output = model.forward(rows, capture=list(sites.values()), stop_after=max(collectors), logits_at=None)
        for layer, collector in collectors.items():
            parts[layer].append(collector.encode(output.activations[sites[layer]]).half().cpu())
    return {layer: torch.cat(p) if p else torch.zeros(0) for layer, p in parts.items()}


@torch.no_grad()
def logit_effects(
    model: LanguageModel, dictionary: Basis, features: Sequence[int], n: int
) -> list[dict[str, list[dict[str, Any]]]]:
    """Tokens whose logits a feature raises and lowers most by its direct path: decoder row through the unembedding.

    The final norm's weight is applied but not its scale, so values are comparable within a feature only. For a layer of
    a cross-layer transcoder, the decoder rows of all layers that a feature writes to are added up.

    Args:
        model: the model.
        dictionary: the features' dictionary.
        features: whose effects.
        n: tokens of each list.

    Returns:
        {top_logits, bottom_logits} of each feature, lists of {token, value}.
    """
    is_neurons = isinstance(dictionary, Neurons)
    rows = dictionary.decoder_rows(list(features)) if is_neurons else reduce(add, dictionary.writes(list(features)))
    rows = rows.to(model.unembedding.weight)
    norm = model.linear_norm(model.final_norm, rows)
    centred = rows - rows.mean(-1, keepdim=True) if norm.centred else rows
    logits_nV = ((centred * norm.weight_D) @ model.unembedding.weight.T).float() * model.logit_scale
    effects: list[dict[str, list[dict[str, Any]]]] = []
    for logits_V in logits_nV:
        top, bottom = logits_V.topk(n), logits_V.topk(n, largest=False)
        effects.append(
            {
                name: [
                    {"token": token, "value": round(float(value), 4)}
                    for token, value in zip(model.token_strings(t.indices.tolist()), t.values, strict=True)
                ]
                for name, t in (("top_logits", top), ("bottom_logits", bottom))
            }
        )
    return effects
