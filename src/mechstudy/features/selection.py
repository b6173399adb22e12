"""The features of finished graphs that get a page, and how much is collected of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

BINS = 64  # of a histogram, from zero to the next power of two above the largest size
N_INTERVALS = 5  # of a side of zero
PER_INTERVAL = 3  # activations drawn
_KEPT = 1 << 29  # activations that labels are made from, of all features


def labelled_documents(context: int, n_features: int) -> int:
    """Documents that labels are made from, so that the activations on them take at most a gigabyte."""
    return max(1, _KEPT // (context * max(1, n_features)))


def features_in_graphs(
    aggregates: Mapping[str, Mapping[str, Any]], per_behaviour: int
) -> dict[tuple[int, int], dict[str, dict[str, Any]]]:
    """Each behaviour's features of largest influence, total effect or effect of replacement.

    Args:
        aggregates: behaviour -> the content of its ``aggregate.json``.
        per_behaviour: features taken of each.

    Returns:
        (layer, feature) -> behaviour -> {influence, frequency, total_effect, positions}: influence and total effect are
        summed over the feature's positions, frequency is the largest.
    """
    chosen: dict[tuple[int, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for behaviour, aggregate in aggregates.items():
        nodes = [node for node in aggregate["nodes"] if node["type"] == "feature"]
        of_behaviour: dict[tuple[int, int], dict[str, Any]] = {}
        rank: dict[str, int] = {}
        ranked = all("contrast_effect" in node for node in nodes)  # not in graphs of earlier versions
        for measure in ("influence", "total_effect", *(("contrast_effect",) if ranked else ())):
            for place, node in enumerate(sorted(nodes, key=lambda n: -abs(n[measure]))):
                rank[node["id"]] = min(place, rank.get(node["id"], place))
        for node in sorted(nodes, key=lambda n: (rank[n["id"]], n["id"])):
            key = (node["layer"], node["feature"])
            if key not in of_behaviour and len(of_behaviour) >= per_behaviour:
                continue
            entry = of_behaviour.setdefault(
                key, {"influence": 0.0, "frequency": 0.0, "total_effect": 0.0, "positions": []}
            )
            entry["influence"] += node["influence"]
            entry["total_effect"] += node["total_effect"]
            entry["frequency"] = max(entry["frequency"], node["frequency"])
            entry["positions"].append(node["position"])
        for key, entry in of_behaviour.items():
            chosen[key][behaviour] = entry
    return dict(chosen)
