"""The content of feature pages: examples, logit effects, frequency, and the graphs a feature is in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechstudy.core.progress import Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.features.examples import collect_features, example_windows, logit_effects
from mechstudy.models.language_model import LanguageModel


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
        layer, feature, kind, frequency, mean_activation, max_activation, top_logits, bottom_logits, examples, graphs.
    """
    chosen: dict[int, list[int]] = defaultdict(list)
    for layer, feature in sorted(graphs):
        chosen[layer].append(feature)
    if not chosen:
        return []
    statistics = collect_features(
        model, dictionaries, dict(chosen), token_rows_BT, n_examples, batch_tokens=batch_tokens, progress=progress
    )
    logits = {
        (layer, feature): effects
        for layer, features in chosen.items()
        for feature, effects in zip(
            features, logit_effects(model, dictionaries[layer], features, top_logits), strict=True
        )
    }
    pages = []
    for layer, feature, examples in example_windows(
        model, dictionaries, statistics, token_rows_BT, window, batch_tokens=batch_tokens
    ):
        of_layer = statistics[layer]
        i = of_layer.features.index(feature)
        pages.append(
            {
                "layer": layer,
                "feature": feature,
                "kind": dictionaries[layer].cfg.kind,
                "frequency": float(of_layer.frequency_n[i]),
                "mean_activation": float(of_layer.mean_n[i]),
                "max_activation": float(of_layer.max_n[i]),
                **logits[layer, feature],
                "examples": examples,
                "graphs": graphs[layer, feature],
            }
        )
    return pages
