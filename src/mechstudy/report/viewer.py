"""What the scripts of the pages read: attribution graphs, as nodes on a grid and edges by index, and features.

Per-prompt graphs are Neuronpedia JSON (schema 1) with our extra fields; the aggregated graph is ours.
"""

# ruff: noqa: RUF001 - a minus sign is what the label shows

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mechstudy.circuits.graph_frames import GraphFrames
from mechstudy.circuits.supernodes import Supernodes
from mechstudy.features.asked_labels import AskedLabel, name_of, page_id
from mechstudy.report.formatting import clip, plain, significant, visible
from mechstudy.report.page_data import write_data

TYPES = ("feature", "error", "token", "bias", "logit")
MAX_EDGES = 40_000  # drawn; the artifact keeps them all
MAX_HEADS = 20
MAX_GROUPED = 1000  # features: grouping takes the cube of their number

OTHER = "other"
AGGREGATE = "aggregate"  # the name of a behaviour's graph on its page
TARGETS = {"logit_difference": "answer − wrong answer", "logits": "top outputs"}
OF_DIFFERENCE = "clean prompt − corrupted prompt"

_NEURONPEDIA_TYPES = {"mlp reconstruction error": "error", "embedding": "token", "logit": "logit", "bias": "bias"}

MAX_EXAMPLES = 10
BEFORE, AFTER = 28, 10  # tokens of an example kept around its peak
N_LOGITS = 10
MAX_LABEL = 80  # characters

_CHECKED = ("predicted", "predicted_qk", "frozen", "qk", "direct_live", "direct_live_ci95", "total_live", "n")

Labels = Mapping[tuple[int, int], str]
Densities = Mapping[tuple[int, int], float]


def prompt_view(
    graph: Mapping[str, Any],
    labels: Labels,
    densities: Densities = MappingProxyType({}),
    alike: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """The viewer's data of a per-prompt graph.

    Args:
        graph: Neuronpedia JSON; `metadata.mechstudy` and nodes of type `bias` are optional.
        labels: (layer, feature) -> automatic label, for nodes without a `clerp`.
        densities: (layer, feature) -> the share of text on which it fires, where that is known.
        alike: groups of nodes (`automatic_groups`).
    """
    meta = graph.get("metadata") or {}
    ours = meta.get("mechstudy") or {}
    tokens = [str(t) for t in meta.get("prompt_tokens") or []]
    names = {int(i): str(name) for name, i in (ours.get("positions") or {}).items()}
    columns = [{"label": visible(t), "name": names.get(i, "")} for i, t in enumerate(tokens)]
    nodes = [_prompt_node(n, labels, tokens) for n in graph.get("nodes") or []]
    outputs = [n for n in graph.get("nodes") or [] if str(n.get("feature_type")) == "logit"]
    qk = [dict(zip(("source", "target", "weight"), link, strict=True)) for link in ours.get("qk_links") or []]
    places = [names.get(i) or visible(token) for i, token in enumerate(tokens)]
    pairs = {(p["layer"], p["head"], p["query"]): _pairs(p, places) for p in ours.get("head_pairs") or []}
    heads = [
        _head(layer, head, places[query], influence) | {"pairs": pairs.get((layer, head, query))}
        for layer, head, query, influence in ours.get("heads") or []
    ]
    return _view(nodes, graph.get("links") or [], columns, qk, densities=densities) | {
        "kind": "prompt",
        "neurons": ours.get("neuron_layers") or [],
        "alike": alike,
        "heads": heads[:MAX_HEADS],
        "slug": str(meta.get("slug", "")),
        "prompt": str(meta.get("prompt") or "".join(tokens)),
        **{field: "|".join(ours.get(f"{field}s") or ()) or ours.get(field) for field in ("answer", "wrong_answer")},
        "logit_difference": ours.get("logit_difference"),
        **({"target": ours["metric"]} if "metric" in ours else {}),
        **({"target": f"{ours.get('metric') or 'logit difference'}, {OF_DIFFERENCE}"} if _explains(ours) else {}),
        **({"explains": "difference"} if _explains(ours) else {}),
        **{field: ours.get(field) or {} for field in ("scores", "ledger")},
        "output_weights": {n["node_id"]: n.get("influence") or n.get("token_prob") or 1.0 for n in outputs},
        **({"edits": edits} if (edits := graph.get("qParams")) else {}),
    }


def _prompt_node(n: Mapping[str, Any], labels: Labels, tokens: list[str]) -> dict[str, Any]:
    kind = _NEURONPEDIA_TYPES.get(str(n.get("feature_type")), "feature")
    position, feature, label = int(n.get("ctx_idx") or 0), None, str(n.get("clerp") or "")
    if kind == "feature":
        feature = int(str(n["node_id"]).split("_")[1])  # layer_feature_position; `feature` is a pairing of both
        label = label or labels.get((int(n["layer"]), feature), "")
    elif kind == "token":
        label = visible(label or (tokens[position] if position < len(tokens) else ""))
    return _node(n, str(n["node_id"]), kind, feature, None if kind == "bias" else position, label)


def _node(
    n: Mapping[str, Any], node_id: str, kind: str, feature: int | None, column: int | None, label: str
) -> dict[str, Any]:
    layer = str(n.get("layer"))  # "E": the embedding
    return {
        "id": node_id,
        "type": kind,
        "layer": int(layer) if kind not in ("token", "logit") and layer.isdecimal() else None,
        "feature": feature,
        "column": column,
        "label": label,
        "probability": n.get("token_prob") if kind == "logit" else None,
        **{field: n.get(field) for field in ("influence", "activation", "frequency")},
    }


def aggregate_view(
    aggregate: Mapping[str, Any],
    labels: Labels,
    checked: Sequence[Mapping[str, Any]] = (),
    scores: Mapping[str, Any] = MappingProxyType({}),
    densities: Densities = MappingProxyType({}),
    alike: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """The viewer's data of an aggregated graph.

    Args:
        aggregate: aggregate.json.
        labels: (layer, feature) -> automatic label, for nodes without one.
        checked: rows of the interventions' edge check; an edge that has one carries it.
        scores: numbers to show beside the graph.
        densities: as of `prompt_view`.
        alike: as of `prompt_view`.
    """
    positions = [str(p) for p in aggregate.get("positions") or []]
    if not any(n.get("position") == OTHER for n in aggregate.get("nodes") or []):
        positions = [p for p in positions if p != OTHER]
    positions.sort(key=lambda p: p != OTHER)  # tokens without a name stand apart, at the left; the rest keeps its order
    columns = [{"label": p, "name": ""} for p in positions]
    where = {p: i for i, p in enumerate(positions)}
    target, nodes = str(aggregate.get("target") or ""), []
    for n in aggregate.get("nodes") or []:
        kind = str(n.get("type"))
        column = where.get(str(n.get("position")), len(positions) - 1 if kind == "logit" else None)
        label = _label(n, labels, target)
        nodes.append(_node(n, str(n["id"]), kind if kind in TYPES else "feature", n.get("feature"), column, label))
    heads: list[dict[str, Any]] = []
    for entry in aggregate.get("heads") or []:
        place, _, query = str(entry["id"]).partition("@")
        _, layer, head = place.split(".")
        heads.append(_head(int(layer), int(head), query, entry.get("influence"), entry.get("frequency")))
    qk = aggregate.get("qk_edges") or []
    return _view(nodes, aggregate.get("edges") or [], columns, qk, checked, densities) | {
        "kind": "aggregate",
        "neurons": aggregate.get("neuron_layers") or [],
        "alike": alike,
        "heads": heads[:MAX_HEADS],
        "slug": AGGREGATE,
        "behaviour": aggregate.get("behaviour"),
        **({"edits": edits} if (edits := aggregate.get("qParams")) else {}),
        "target": (aggregate.get("metric") or TARGETS.get(target, target))
        + (f", {OF_DIFFERENCE}" if _explains(aggregate) else ""),
        "n_prompts": aggregate.get("n_prompts"),
        "scores": scores,
        "ledger": {},
    }


def _explains(about: Mapping[str, Any]) -> bool:
    """Whether graphs explain the difference between two prompts."""
    return about.get("explains") == "difference"


def _head(layer: int, head: int, query: str, influence: float | None, frequency: float | None = None) -> dict[str, Any]:
    """A head that edges run through: its name, where it reads for, and the influence that passes it first."""
    [influence, frequency] = significant([influence, frequency], 3)
    return {"name": f"L{layer} head {head}", "query": query, "influence": influence, "frequency": frequency}


def _pairs(of_score: Mapping[str, Any], places: Sequence[str]) -> dict[str, Any]:
    """The largest terms of a head's score: where it reads, the pattern and the score there, and the pairs."""
    [pattern, score] = significant([of_score["pattern"], of_score["score"]], 3)
    terms = significant([term for *_, term in of_score["pairs"]], 3)
    pairs = [[query, key, term] for (query, key, _), term in zip(of_score["pairs"], terms, strict=True)]
    return {"key": places[of_score["key"]], "pattern": pattern, "score": score, "pairs": pairs}


def _label(n: Mapping[str, Any], labels: Labels, target: str) -> str:
    """A node's own label, unless it only repeats what the node is."""
    label, kind = str(n.get("label") or ""), n.get("type")
    if kind == "feature":
        own = "" if label == f"{n.get('layer')}/{n.get('feature')}" else label
        return own or labels.get((int(n["layer"]), int(n["feature"])), "")
    if kind == "token":
        return str(n.get("position") or label)
    return TARGETS.get(target, label) if kind == "logit" and label == "target" else label


def _view(
    nodes: list[dict[str, Any]],
    edges: Sequence[Mapping[str, Any]],
    columns: list[dict[str, str]],
    qk_edges: Sequence[Mapping[str, Any]],
    checked: Sequence[Mapping[str, Any]] = (),
    densities: Densities = MappingProxyType({}),
) -> dict[str, Any]:
    shift = int(any(n["column"] is None for n in nodes))  # biases have a column of their own, the first
    columns = [{"label": "constants", "name": ""}] * shift + columns
    layers = sorted({n["layer"] for n in nodes if n["layer"] is not None})
    rows = ["tokens", *(f"L{layer}" for layer in layers), "output"]
    row_of = {layer: i for i, layer in enumerate([None, *layers])}
    nodes = _by_importance(nodes)
    numbers = ("influence", "share", "activation", "frequency", "probability")
    return {
        "columns": columns,
        "rows": rows,
        "nodes": {
            "id": [n["id"] for n in nodes],
            "type": [TYPES.index(n["type"]) for n in nodes],
            "row": [len(rows) - 1 if n["type"] == "logit" else row_of[n["layer"]] for n in nodes],
            "column": [0 if n["column"] is None else min(n["column"] + shift, len(columns) - 1) for n in nodes],
            "layer": [n["layer"] for n in nodes],
            "feature": [n["feature"] for n in nodes],
            **{field: significant([n[field] for n in nodes]) for field in numbers},
            "label": [n["label"] for n in nodes],
            "density": significant([_density(n, densities) for n in nodes], 3),
        },
        **_edges(edges, qk_edges, {n["id"]: i for i, n in enumerate(nodes)}, checked),
    }


def _density(n: Mapping[str, Any], densities: Densities) -> float | None:
    return None if n["feature"] is None else densities.get((n["layer"], n["feature"]))


def automatic_groups(graph: GraphFrames) -> list[list[str]]:
    """The nodes of each group of several features that `Supernodes` makes by their edges; none of very large graphs."""
    if not 1 < len(graph.nodes.filter(kind="feature")) <= MAX_GROUPED:
        return []
    frame = Supernodes(graph, None, {}).frame
    groups = frame.group_by("group", maintain_order=True).agg("node")["node"].to_list()
    return [group for group in groups if len(group) > 1]


def _edges(
    edges: Sequence[Mapping[str, Any]],
    qk_edges: Sequence[Mapping[str, Any]],
    index: Mapping[str, int],
    checked: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Edges between drawn nodes, strongest first; those through attention patterns, marked by ``qk``, come last."""
    values, qk = (_between(some, index) for some in (edges, qk_edges))
    drawn = [*values[:MAX_EDGES], *qk]
    n_values = len(drawn) - len(qk)
    ends = [(str(e["source"]), str(e["target"])) for e in drawn]
    result: dict[str, Any] = {
        "source": [index[source] for source, _ in ends],
        "target": [index[target] for _, target in ends],
        "weight": significant([e["weight"] for e in drawn], 8),  # scores of pinned nodes are as exact as Python's
        "qk": [int(i >= n_values) for i in range(len(drawn))],
    }
    for field in ("weight_sd", "frequency"):
        if any(e.get(field) is not None for e in drawn):
            result[field] = significant([e.get(field) for e in drawn], 3)
    rows = {(r.get("kind") == "qk", str(r["source"]), str(r["target"])): r for r in checked}
    checks = {
        str(i): {field: row.get(field) for field in _CHECKED}
        for i, pair in enumerate(ends)
        if (row := rows.get((i >= n_values, *pair))) is not None
    }
    through = {str(i): [_through(*part) for part in parts] for i, e in enumerate(drawn) if (parts := e.get("heads"))}
    return {"edges": result, "edges_dropped": len(values) - n_values, "checks": checks, "edge_heads": through}


def _through(layer: int, head: int, _: int, weight: float) -> list[Any]:
    """A head that an edge runs through, and how much of the edge."""
    return [f"L{layer} head {head}", significant([weight], 3)[0]]


def _between(edges: Sequence[Mapping[str, Any]], index: Mapping[str, int]) -> list[Mapping[str, Any]]:
    """The edges between drawn nodes, strongest first."""
    known = [e for e in edges if {str(e["source"]), str(e["target"])} <= index.keys() and e.get("weight")]
    return sorted(known, key=lambda e: -(e["strength"] if e.get("strength") is not None else abs(e["weight"])))


def _by_importance(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nodes with the most important first, each with `share`: the cumulative influence at which it enters.

    Tokens, outputs and nodes without an influence (biases) have share 0: no threshold hides them.
    """
    inner = [n for n in nodes if n["type"] not in ("token", "logit") and n["influence"] is not None]
    outer = [n for n in nodes if n["type"] in ("token", "logit") or n["influence"] is None]
    if is_cumulative([n["influence"] for n in inner]):
        inner.sort(key=lambda n: n["influence"])
        shares = [n["influence"] for n in inner]
    else:
        inner.sort(key=lambda n: -abs(n["influence"]))
        sums = list(accumulate((abs(n["influence"]) for n in inner), initial=0.0))
        shares = [before / (sums[-1] or 1.0) for before in sums[:-1]]
    return [{**n, "share": 0.0} for n in outer] + [{**n, "share": s} for n, s in zip(inner, shares, strict=True)]


def is_cumulative(influences: Sequence[float]) -> bool:
    """Whether influences are cumulative shares (circuit-tracer's files), where *small* means important.

    Shares that add up to a direct influence are small; cumulative ones lie between 0 and 1 with a high mean.
    """
    n = len(influences)
    return n > 3 and min(influences) >= 0 and max(influences) <= 1.0001 and sum(influences) / n > 0.3


def feature_labels(features: Sequence[Mapping[str, Any]]) -> Labels:
    """(layer, feature) -> its `auto_label`."""
    return {(int(f["layer"]), int(f["feature"])): auto_label(f) for f in features}


def feature_densities(features: Sequence[Mapping[str, Any]]) -> Densities:
    """(layer, feature) -> the share of the corpus on which it fires, where it was searched."""
    return {(int(f["layer"]), int(f["feature"])): float(d) for f in features if (d := f.get("frequency")) is not None}


def with_asked(features: Sequence[Mapping[str, Any]], asked: Mapping[str, AskedLabel]) -> list[dict[str, Any]]:
    """Features with the labels that an endpoint or others gave, where these are of what the run has recorded."""
    made = []
    for feature in features:
        one = asked.get(name_of(feature))
        current = one is not None and one.page == page_id(feature)
        made.append({**feature, "asked": asdict(one) if one is not None and current else None})
    return made


def auto_label(feature: Mapping[str, Any]) -> str:
    """`on «keys», «doors» → «·are»`: the rule of what it fires on where one is claimed, and what it promotes most.

    A label that an endpoint or others gave stands alone. Without a claim the token of its largest activations is in
    the rule's place: `peaks on «·keys» → «·are»`; `lowest on` of a neuron whose largest are below zero. Empty where
    there is neither an example nor a logit.
    """
    if asked := feature.get("asked"):
        return clip(plain(str(asked["label"])), MAX_LABEL)
    rule, parts = feature.get("label") or {}, []
    peaks = Counter(
        (e["tokens"][e["peak"]], e["activations"][e["peak"]] < 0)
        for e in feature.get("examples") or []
        if 0 <= e.get("peak", -1) < len(e["tokens"])
    )
    if rule.get("claimed"):
        parts.append(("below zero " if rule.get("sign") == -1 else "") + clip(plain(rule["rule"]), 48))
    elif peaks:
        token, negative = peaks.most_common(1)[0][0]
        parts.append(f"{'lowest' if negative else 'peaks'} on «{clip(visible(token), 14)}»")
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
        "rule": feature.get("label"),
        "asked": feature.get("asked"),
        "top": _logits(feature.get("top_logits")),
        "bottom": _logits(feature.get("bottom_logits")),
        "examples": [_example(e) for e in (feature.get("examples") or [])[:MAX_EXAMPLES]],
        "histogram": feature.get("histogram"),
        "intervals": [
            {**interval, "examples": [_example(e) for e in interval["examples"]]}
            for interval in feature.get("intervals") or []
        ],
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
