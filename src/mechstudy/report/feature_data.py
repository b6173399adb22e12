"""Features as the pages read them: a data file per layer, an index, and an automatic label for each feature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechstudy.report.figures import write_data
from mechstudy.report.formatting import clip, significant, visible

MAX_EXAMPLES = 10
BEFORE, AFTER = 28, 10  # tokens of an example kept around its peak
N_LOGITS = 10

Labels = dict[tuple[int, int], str]


def feature_labels(features: Sequence[Mapping[str, Any]]) -> Labels:
    """(layer, feature) -> `on «·keys» → «·are»`: where it fires most and which token it promotes most.

    A machine's summary of the evidence, not an interpretation; the pages say so.
    """
    return {(int(f["layer"]), int(f["feature"])): auto_label(f) for f in features}


def auto_label(feature: Mapping[str, Any]) -> str:
    """See `feature_labels`; empty where there is neither an example nor a logit."""
    peaks = Counter(
        e["tokens"][e["peak"]] for e in feature.get("examples") or [] if 0 <= e.get("peak", -1) < len(e["tokens"])
    )
    parts = []
    if peaks:
        parts.append(f"on «{clip(visible(peaks.most_common(1)[0][0]), 14)}»")
    if feature.get("top_logits"):
        parts.append(f"→ «{clip(visible(str(feature['top_logits'][0]['token'])), 14)}»")
    return " ".join(parts)


def write_features(out: Path, features: Sequence[Mapping[str, Any]]) -> None:
    """Write data/features-L<layer>.js and data/features-index.js, the most influential feature first."""
    layers: dict[int, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for feature in features:
        layer, number = int(feature["layer"]), int(feature["feature"])
        layers.setdefault(layer, {})[str(number)] = feature_record(feature)
        graphs = feature.get("graphs") or {}
        rows.append(
            {
                "layer": layer,
                "feature": number,
                "label": auto_label(feature),
                "frequency": feature.get("frequency"),
                "max_activation": feature.get("max_activation"),
                "graphs": {b: significant([g.get("influence")], 3)[0] for b, g in graphs.items()},
                "influence": max((abs(g.get("influence") or 0.0) for g in graphs.values()), default=0.0),
            }
        )
    for layer, records in layers.items():
        write_data(out, f"features-L{layer}", records)
    rows.sort(key=lambda r: (-r["influence"], r["layer"], r["feature"]))
    write_data(out, "features-index", rows)


def feature_record(feature: Mapping[str, Any]) -> dict[str, Any]:
    """One feature of features.json, as the pages' scripts read it."""
    return {
        "kind": feature.get("kind"),
        "frequency": feature.get("frequency"),
        "mean": significant([feature.get("mean_activation")])[0],
        "max": significant([feature.get("max_activation")])[0],
        "label": auto_label(feature),
        "top": _logits(feature.get("top_logits")),
        "bottom": _logits(feature.get("bottom_logits")),
        "examples": [_example(e) for e in (feature.get("examples") or [])[:MAX_EXAMPLES]],
        "graphs": feature.get("graphs") or {},
    }


def _logits(logits: Sequence[Mapping[str, Any]] | None) -> list[list[Any]]:
    return [[str(row["token"]), significant([row["value"]], 3)[0]] for row in (logits or [])[:N_LOGITS]]


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    tokens, peak = example["tokens"], int(example["peak"])
    start, stop = max(0, peak - BEFORE), min(len(tokens), peak + AFTER + 1)
    return {
        "t": [str(t) for t in tokens[start:stop]],
        "a": [v or 0 for v in significant(example["activations"][start:stop], 3)],
        "p": peak - start,
        "d": example.get("document"),
        "cut": [start > 0, stop < len(tokens)],
    }
