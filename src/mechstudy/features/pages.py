"""The content of feature pages: examples, logit effects, frequency, and the graphs a feature is in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from jaxtyping import Int
from torch import Tensor

from mechstudy.core.progress import Bar, NullProgress, Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.features.examples import FeatureStatistics, collect_features, example_windows, logit_effects
from mechstudy.features.labels import Label, labels
from mechstudy.features.rules import Text
from mechstudy.features.selection import labelled_documents
from mechstudy.models.language_model import LanguageModel

T = TypeVar("T")


def feature_pages(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    graphs: Mapping[tuple[int, int], Mapping[str, Any]],
    token_rows_BT: Int[Tensor, "b t"],
    *,
    n_examples: int,
    window: int,
    top_logits: int,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One page per feature, by layer and feature.

    Args:
        dictionaries: by layer.
        graphs: (layer, feature) -> where it is in graphs, copied into its page (see `features_in_graphs`).
        token_rows_BT: the documents searched for examples.
        n_examples: documents shown per feature.
        window: tokens of each that are shown, around the peak.
        top_logits: tokens listed that the feature promotes, and as many that it lowers.
        batch_tokens: tokens of a forward pass.

    Returns:
        layer, feature, kind, label (see `Label`), frequency, mean_activation, max_activation, histogram {bin_width,
        positive, negative} and intervals {low, high, count, examples} (see `ActivationRange`), top_logits,
        bottom_logits, examples, graphs.
    """
    chosen: dict[int, list[int]] = defaultdict(list)
    for layer, feature in sorted(graphs):
        chosen[layer].append(feature)
    if not chosen:
        return []
    keep = min(len(token_rows_BT), labelled_documents(token_rows_BT.shape[1], len(graphs)))
    statistics = collect_features(
        model, dictionaries, dict(chosen), token_rows_BT, n_examples,
        keep=keep, batch_tokens=batch_tokens, progress=progress,
    )  # fmt: skip
    labelled = _labels(model, statistics, token_rows_BT[:keep], progress)
    logits = {
        (layer, feature): effects
        for layer, features in chosen.items()
        for feature, effects in zip(
            features, logit_effects(model, dictionaries[layer], features, top_logits), strict=True
        )
    }
    pages = []
    for layer, feature, examples, by_interval in example_windows(
        model, dictionaries, statistics, token_rows_BT, window, batch_tokens=batch_tokens
    ):
        of_layer = statistics[layer]
        i = of_layer.features.index(feature)
        of_range = of_layer.ranges[i]
        pages.append(
            {
                "layer": layer,
                "feature": feature,
                "kind": dictionaries[layer].cfg.kind,
                "label": labelled[layer, feature].record,
                "frequency": float(of_layer.frequency_n[i]),
                "mean_activation": float(of_layer.mean_n[i]),
                "max_activation": float(of_layer.max_n[i]),
                "histogram": {
                    "bin_width": of_range.bin_width,
                    "positive": list(of_range.positive),
                    "negative": list(of_range.negative),
                },
                **logits[layer, feature],
                "examples": examples,
                "intervals": [
                    {"low": one.low, "high": one.high, "count": one.count, "examples": drawn}
                    for one, drawn in zip(of_range.intervals, by_interval, strict=True)
                ],
                "graphs": graphs[layer, feature],
            }
        )
    return pages


def _labels(
    model: LanguageModel,
    statistics: Mapping[int, FeatureStatistics],
    token_rows_BT: Int[Tensor, "b t"],
    progress: Progress | None,
) -> dict[tuple[int, int], Label]:
    text = Text.of(model, token_rows_BT)
    keys = [(layer, feature) for layer, of in statistics.items() for feature in of.features]
    rows = (acts_BT.flatten().float().numpy() for of in statistics.values() for acts_BT in of.acts_NBT)
    with (progress or NullProgress()).bar("labels", len(keys), "features") as bar:
        return dict(zip(keys, labels(text, _counted(rows, bar)), strict=True))


def _counted(rows: Iterable[T], bar: Bar) -> Iterator[T]:
    for row in rows:
        yield row
        bar.advance(1)
