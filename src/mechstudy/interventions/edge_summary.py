"""Predicted against measured edges: the ``edges`` entry of summary.json."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechstudy.core.seeds import numpy_generator
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.results import EDGES_MEASURED, read_csv
from mechstudy.statistics.association import spearman
from mechstudy.statistics.bootstrap import cluster_bootstrap

_FLOOR = 1e-3  # of the largest prediction: below it, the relative error of one instance says nothing
_Row = Mapping[str, str]


def summarise_edges(
    path: Path, config: InterventionConfig, behaviour: str, replaced_by: str = "zero"
) -> dict[str, Any] | None:
    """The ``edges`` entry of summary.json from edges.csv; None without edges.

    ``n``, Spearman correlations over edges of mean predicted and measured changes, and ``rows``, are those of value
    edges, and of QK edges under ``qk``. ``spearman_frozen`` compares the value edge with ``frozen``, ``spearman_qk``
    the QK edge with ``qk``, ``spearman_direct_live`` their sum with ``direct_live`` and ``spearman_total_live`` their
    sum with ``total_live``. ``beyond``: the share of the live direct changes that is neither ``frozen`` nor ``qk``, by
    size: what frozen scales of norms and gates leave out, and paths through several scores.

    ``max_relative_error_frozen``: largest |frozen - predicted| / |predicted| of a value edge, Euclidean norms over its
    prompts (an edge's mean may cancel between prompts, its norm does not); ``max_relative_error_frozen_instance``: of
    one edge on one prompt, with the prediction's size taken as at least 0.001 x the largest prediction (weights near 0
    have no meaningful relative error).
    """
    by_kind: dict[str, list[_Row]] = defaultdict(list)
    for row in read_csv(path):
        by_kind[row["kind"]].append(row)
    if not by_kind:
        return None
    values = _of_kind(by_kind["value"], config, behaviour, "edge")
    qk = _of_kind(by_kind["qk"], config, behaviour, "qk edge")
    return {"replaced_by": replaced_by, **values, **_frozen_errors(by_kind["value"]), "qk": qk}


def _of_kind(rows: Sequence[_Row], config: InterventionConfig, behaviour: str, name: str) -> dict[str, Any]:
    """Numbers and rows of one kind of edges."""
    edges = [
        _edge(group, config, behaviour, f"{name} {source} {target}")
        for (source, target), group in _by_edge(rows).items()
    ]
    size = sum(abs(float(r["direct_live"])) for r in rows)
    beyond = sum(abs(float(r["direct_live"]) - float(r["frozen"]) - float(r["qk"])) for r in rows)

    def correlation(predicted: Callable[[Mapping[str, Any]], float], measured: str) -> float | None:
        return spearman([predicted(e) for e in edges], [e[measured] for e in edges]) if edges else None

    return {
        "n": len(edges),
        "n_instances": len(rows),
        "spearman_frozen": correlation(lambda e: e["predicted"], "frozen"),
        "spearman_qk": correlation(lambda e: e["predicted_qk"], "qk"),
        "spearman_direct_live": correlation(_both, "direct_live"),
        "spearman_total_live": correlation(_both, "total_live"),
        "beyond": beyond / size if size else None,
        "rows": edges,
    }


def _both(edge: Mapping[str, Any]) -> float:
    """The predicted direct change: through values and through queries and keys."""
    both: float = edge["predicted"] + edge["predicted_qk"]
    return both


def _edge(group: Sequence[_Row], config: InterventionConfig, behaviour: str, name: str) -> dict[str, Any]:
    """Means of one edge over its prompts; those that are measured with intervals."""
    clusters = [r["cluster"] for r in group]
    entry: dict[str, Any] = {"source": group[0]["source"], "target": group[0]["target"], "n": len(group)}
    for field in ("removed", "predicted", "predicted_qk"):
        entry[field] = sum(float(r[field]) for r in group) / len(group)
    for field in EDGES_MEASURED:
        rng = numpy_generator(config.seed, behaviour, f"{name} {field}")
        values = [float(r[field]) for r in group]
        estimate = cluster_bootstrap(values, clusters, rng, n_resamples=config.bootstrap, level=config.ci)
        entry[field], entry[f"{field}_ci95"] = estimate.value, estimate.ci
        entry |= estimate.missing_fields(f"{field}_ci95")
    return entry


def _frozen_errors(rows: Sequence[_Row]) -> dict[str, float | None]:
    """The largest relative errors of value edges against the frozen model."""
    largest = max((abs(float(r["predicted"])) for r in rows), default=0.0)
    worst = 0.0
    for r in rows:
        size = max(abs(float(r["predicted"])), _FLOOR * largest)
        worst = max(worst, abs(float(r["frozen"]) - float(r["predicted"])) / size if size else 0.0)
    errors = [_relative_error(g) for g in _by_edge(rows).values() if any(float(r["predicted"]) for r in g)]
    return {
        "max_relative_error_frozen": max(errors, default=None),
        "max_relative_error_frozen_instance": worst if rows else None,
    }


def _by_edge(rows: Sequence[_Row]) -> dict[tuple[str, str], list[_Row]]:
    by_edge: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        by_edge[row["source"], row["target"]].append(row)
    return by_edge


def _relative_error(group: Sequence[_Row]) -> float:
    """Of one edge: the norm of what was measured minus what was predicted, over the norm of the prediction."""
    predicted = [float(r["predicted"]) for r in group]
    return math.dist([float(r["frozen"]) for r in group], predicted) / math.hypot(*predicted)
