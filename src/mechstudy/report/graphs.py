"""Attribution graphs as the viewer reads them: nodes on a grid of positions and layers, edges by index.

Per-prompt graphs are Neuronpedia JSON (schema 1) with our extra fields; the aggregated graph is ours.
"""

# ruff: noqa: RUF001 - a minus sign is what the label shows

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mechstudy.report.formatting import significant, visible

TYPES = ("feature", "error", "token", "bias", "logit")
MAX_EDGES = 40_000  # drawn; the artifact keeps them all

OTHER = "other"
TARGETS = {"logit_difference": "answer − wrong answer", "logits": "top outputs"}

_NEURONPEDIA_TYPES = {
    "mlp reconstruction error": "error",
    "embedding": "token",
    "logit": "logit",
    "bias": "bias",
}


def prompt_view(graph: Mapping[str, Any], labels: Mapping[tuple[int, int], str]) -> dict[str, Any]:
    """The viewer's data of a per-prompt graph.

    Args:
        graph: Neuronpedia JSON; `metadata.mechstudy` and nodes of type `bias` are optional.
        labels: (layer, feature) -> automatic label, for nodes without a `clerp`.
    """
    meta = graph.get("metadata") or {}
    ours = meta.get("mechstudy") or {}
    tokens = [str(t) for t in meta.get("prompt_tokens") or []]
    names = {int(i): str(name) for name, i in (ours.get("positions") or {}).items()}
    columns = [{"label": visible(t), "name": names.get(i, "")} for i, t in enumerate(tokens)]
    nodes = [_prompt_node(n, labels, tokens) for n in graph.get("nodes") or []]
    view = _view(nodes, graph.get("links") or [], columns)
    view.update(
        kind="prompt",
        slug=str(meta.get("slug", "")),
        prompt=str(meta.get("prompt") or "".join(tokens)),
        answer=ours.get("answer"),
        wrong_answer=ours.get("wrong_answer"),
        logit_difference=ours.get("logit_difference"),
        scores=ours.get("scores") or {},
        ledger=ours.get("ledger") or {},
    )
    return view


def _prompt_node(n: Mapping[str, Any], labels: Mapping[tuple[int, int], str], tokens: list[str]) -> dict[str, Any]:
    kind = _NEURONPEDIA_TYPES.get(str(n.get("feature_type")), "feature")
    position, feature, label = int(n.get("ctx_idx") or 0), None, str(n.get("clerp") or "")
    if kind == "feature":
        feature = int(str(n["node_id"]).split("_")[1])  # layer_feature_position; `feature` is a pairing of both
        layer = _layer(n.get("layer"))
        label = label or labels.get((layer if layer is not None else -1, feature), "")
    elif kind == "token":
        label = visible(label or (tokens[position] if position < len(tokens) else ""))
    node = _node(n, str(n["node_id"]), kind, feature, None if kind == "bias" else position, label)
    return node | {"frequency": None, "probability": n.get("token_prob") if kind == "logit" else None}


def _node(
    n: Mapping[str, Any], node_id: str, kind: str, feature: int | None, column: int | None, label: str
) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": kind,
        "layer": None if kind in ("token", "logit") else _layer(n.get("layer")),
        "feature": feature,
        "column": column,
        "label": label,
        "probability": None,
        **{field: n.get(field) for field in ("influence", "activation", "frequency")},
    }


def aggregate_view(
    aggregate: Mapping[str, Any],
    labels: Mapping[tuple[int, int], str],
    checked: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The viewer's data of an aggregated graph.

    Args:
        aggregate: aggregate.json.
        labels: (layer, feature) -> automatic label, for nodes without one.
        checked: rows of the interventions' edge check; an edge that has one carries it.
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
    view = _view(nodes, aggregate.get("edges") or [], columns, checked)
    view.update(
        kind="aggregate",
        slug="aggregate",
        target=TARGETS.get(target, target),
        n_prompts=aggregate.get("n_prompts"),
        scores=aggregate.get("scores") or {},
        ledger=aggregate.get("ledger") or {},
    )
    return view


def _label(n: Mapping[str, Any], labels: Mapping[tuple[int, int], str], target: str) -> str:
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
    checked: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    shift = int(any(n["column"] is None for n in nodes))  # biases have a column of their own, the first
    columns = [{"label": "bias", "name": ""}] * shift + columns
    layers = sorted({n["layer"] for n in nodes if n["layer"] is not None})
    rows = ["tokens", *(f"L{layer}" for layer in layers), "output"]
    row_of = {layer: i for i, layer in enumerate([None, *layers])}
    nodes = _by_importance(nodes)
    index = {n["id"]: i for i, n in enumerate(nodes)}
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
        },
        **_edges(edges, index, checked),
    }


def _edges(
    edges: Sequence[Mapping[str, Any]], index: Mapping[str, int], checked: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    drawn = [e for e in edges if str(e["source"]) in index and str(e["target"]) in index and e.get("weight")]
    drawn.sort(key=lambda e: -(e["strength"] if e.get("strength") is not None else abs(e["weight"])))
    dropped, drawn = max(0, len(drawn) - MAX_EDGES), drawn[:MAX_EDGES]
    rows = {(str(r["source"]), str(r["target"])): r for r in checked}
    result: dict[str, Any] = {
        "source": [index[str(e["source"])] for e in drawn],
        "target": [index[str(e["target"])] for e in drawn],
        "weight": significant([e["weight"] for e in drawn]),
    }
    for field in ("weight_sd", "frequency"):
        if any(e.get(field) is not None for e in drawn):
            result[field] = significant([e.get(field) for e in drawn], 3)
    fields = ("predicted", "frozen", "frozen_ci95", "live", "live_ci95", "n")
    checks = {
        str(i): {field: row.get(field) for field in fields}
        for i, e in enumerate(drawn)
        if (row := rows.get((str(e["source"]), str(e["target"]))))
    }
    return {"edges": result, "edges_dropped": dropped, "checks": checks}


def _layer(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None  # "E": the embedding


def _by_importance(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nodes with the most important first, each with `share`: the cumulative influence at which it enters.

    Tokens, outputs and nodes without an influence (biases) have share 0: no threshold hides them.
    """
    inner = [n for n in nodes if n["type"] in ("feature", "error", "bias") and n["influence"] is not None]
    taken = {n["id"] for n in inner}
    if is_cumulative([n["influence"] for n in inner]):
        inner.sort(key=lambda n: n["influence"])
        shares = [n["influence"] for n in inner]
    else:
        inner.sort(key=lambda n: -abs(n["influence"]))
        total = sum(abs(n["influence"]) for n in inner) or 1.0
        running, shares = 0.0, []
        for n in inner:
            shares.append(running / total)
            running += abs(n["influence"])
    outer = [n for n in nodes if n["id"] not in taken]
    return [{**n, "share": 0.0} for n in outer] + [{**n, "share": s} for n, s in zip(inner, shares, strict=True)]


def is_cumulative(influences: Sequence[float | None]) -> bool:
    """Whether influences are cumulative shares (circuit-tracer's files), where *small* means important.

    Shares that add up to a direct influence are small; cumulative ones lie between 0 and 1 with a high mean.
    """
    values = [v for v in influences if v is not None]
    return len(values) > 3 and min(values) >= 0 and max(values) <= 1.0001 and sum(values) / len(values) > 0.3
