"""From the graphs of many prompts to one graph of a behaviour: features over prompts, by named position.

A prompt's tokens differ, so nodes are identified by what they are and by the name of their position
(``subject``, ``last``, ...); positions without a name share the name ``other``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor

from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import Graph, Pruned
from mechstudy.circuits.influence import total_effects

OTHER = "other"
_INSTANCES = 200  # strongest edges that carry their per-prompt weights, for the causal checks


def position_names(positions: Mapping[str, int], n_positions: int) -> list[str]:
    """The name of every token position; where two names share a token the first one given counts."""
    names = [OTHER] * n_positions
    for name, index in reversed(list(positions.items())):
        names[index] = name
    return names


def node_id(kind: str, layer: int | None = None, feature: int | None = None, position: str | None = None) -> str:
    """Identity of an aggregated node, for example ``f.12.345@subject`` or ``error.3@last``."""
    return {
        "feature": f"f.{layer}.{feature}@{position}",
        "error": f"error.{layer}@{position}",
        "token": f"token@{position}",
        "bias": f"bias.{layer}",
        "logit": "logit",
    }[kind]


def prompt_record(
    prompt_id: str, graph: Graph, pruned: Pruned, positions: Mapping[str, int], live_S: Tensor | None = None
) -> dict[str, Any]:
    """What one prompt contributes: JSON of its nodes, and of its pruned graph's edges.

    All expanded features are there (``kept`` says which survive pruning), so that a feature's mean effect over
    prompts does not depend on where pruning cut. ``live_S`` are `live.live_effects` of the feature columns.
    """
    x = graph.index
    names = position_names(positions, x.n_positions)
    source_I, _ = graph.influence()
    effects = total_effects(graph.A_RS, graph.weights_R, graph.column_R, graph.value_R)
    keys = _source_keys(graph, names)
    shown = pruned.sources_S | graph.expanded_S
    nodes: dict[str, dict[str, Any]] = {}
    for column in shown.nonzero()[:, 0].tolist():
        node = dict(keys[column])
        key = node_id(node["type"], node["layer"], node["feature"], node["position"])
        found = nodes.setdefault(
            key, node | {"influence": 0.0, "total_effect": 0.0, "live_effect": 0.0, "activation": 0.0, "kept": False}
        )
        found["influence"] += float(source_I[column])
        found["total_effect"] += float(effects[column])
        if node["type"] == "feature":
            found["activation"] = max(found["activation"], float(graph.activation_S[column]))
            found["live_effect"] += 0.0 if live_S is None else float(live_S[column])
        found["kept"] |= bool(pruned.sources_S[column])
    edges: dict[tuple[str, str], float] = defaultdict(float)
    row_keys = [_key(keys[c]) if c >= 0 else node_id("logit") for c in graph.column_R.tolist()]
    for row, column in pruned.edges_RS.nonzero().tolist():
        weight = float(graph.A_RS[row, column])
        if graph.column_R[row] < 0:
            weight *= float(graph.weights_R[row])
        edges[_key(keys[column]), row_keys[row]] += weight
    return {
        "prompt_id": prompt_id,
        "nodes": nodes,
        "edges": [{"source": s, "target": t, "weight": w} for (s, t), w in edges.items()],
    }


def aggregate(records: Sequence[Mapping[str, Any]], config: AttributionConfig) -> dict[str, Any]:
    """Nodes and edges over all prompts, the most influential ones.

    ``frequency`` is the share of prompts whose pruned graph has the node or edge, ``presence`` the share on which
    a feature has a row at all; ``influence`` and
    ``total_effect`` are means over all prompts (absent counts 0); ``activation`` and an edge's ``weight`` are
    means over the prompts that have it. Edges between named positions carry ``instances``.
    """
    n = len(records)
    seen: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        for key, node in record["nodes"].items():
            seen[key].append(node)
    nodes = {key: _node(key, found, n) for key, found in seen.items()}
    nodes[node_id("logit")] = {
        "id": node_id("logit"), "type": "logit", "layer": None, "feature": None, "position": "last",
        "frequency": 1.0, "presence": 1.0, "influence": 1.0, "total_effect": 0.0, "live_effect": 0.0,
        "activation": None, "label": "target",
    }  # fmt: skip
    kept = _chosen(nodes.values(), config, n)
    edges = _edges(records, {node["id"] for node in kept}, n)
    return {"nodes": kept, "edges": edges}


def _node(key: str, found: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    first = found[0]
    is_feature = first["type"] == "feature"
    label = {
        "feature": f"{first['layer']}/{first['feature']}",
        "error": f"error {first['layer']}",
        "token": "token",
        "bias": f"bias {first['layer']}",
    }[first["type"]]
    return {
        "id": key,
        "type": first["type"],
        "layer": first["layer"],
        "feature": first["feature"],
        "position": first["position"],
        "frequency": sum(node["kept"] for node in found) / n,
        "presence": len(found) / n,
        "influence": sum(node["influence"] for node in found) / n,
        "total_effect": sum(node["total_effect"] for node in found) / n,
        "live_effect": sum(node["live_effect"] for node in found) / n,
        "activation": fmean(node["activation"] for node in found) if is_feature else None,
        "label": label,
    }


def _chosen(nodes: Iterable[dict[str, Any]], config: AttributionConfig, n: int) -> list[dict[str, Any]]:
    """Nodes that recur, by influence; and beside them the features of the largest effects at named positions."""
    ordered = sorted(nodes, key=lambda node: (-node["influence"], node["id"]))
    needed = min(config.aggregate_min_prompts, n) / n
    recurring = [node for node in ordered if node["frequency"] >= needed or node["type"] in ("logit", "token")]
    kept = {node["id"]: node for node in recurring[: config.aggregate_nodes]}
    named = [node for node in ordered if node["type"] == "feature" and node["position"] != OTHER]
    for effect in ("total_effect", "live_effect"):
        largest = sorted(named, key=lambda node: (-abs(node[effect]), node["id"]))
        kept |= {node["id"]: node for node in largest[: config.aggregate_nodes]}
    return sorted(kept.values(), key=lambda node: (-node["influence"], node["id"]))


def _edges(records: Sequence[Mapping[str, Any]], kept: set[str], n: int) -> list[dict[str, Any]]:
    weights: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for record in records:
        for edge in record["edges"]:
            if edge["source"] in kept and edge["target"] in kept:
                weights[edge["source"], edge["target"]].append((record["prompt_id"], edge["weight"]))
    edges: list[dict[str, Any]] = []
    for (source, target), found in weights.items():
        values = [w for _, w in found]
        edges.append(
            {
                "source": source,
                "target": target,
                "weight": fmean(values),
                "weight_sd": pstdev(values),
                "strength": sum(abs(w) for w in values) / n,
                "frequency": len(values) / n,
                "n": len(values),
            }
        )
    edges.sort(key=lambda e: (-e["strength"], e["source"], e["target"]))
    with_instances = 0
    for edge in edges:
        if with_instances < _INSTANCES and _checkable(edge):
            edge["instances"] = weights[edge["source"], edge["target"]]
            with_instances += 1
    return edges


def _checkable(edge: Mapping[str, Any]) -> bool:
    """From a feature at a named position to another or to the target: what an intervention can measure."""
    source, target = edge["source"], edge["target"]
    other = f"@{OTHER}"
    return (
        source.startswith("f.")
        and target.startswith(("f.", "logit"))
        and not (source.endswith(other) or target.endswith(other))
    )


def _source_keys(graph: Graph, names: Sequence[str]) -> list[dict[str, Any]]:
    """What each column of the matrix is."""
    x = graph.index

    def node(kind: str, layer: int | None, feature: int | None, position: str | None) -> dict[str, Any]:
        return {"type": kind, "layer": layer, "feature": feature, "position": position}

    features = zip(
        graph.feature_layer_S.tolist(), graph.feature_id_S.tolist(), graph.feature_position_S.tolist(), strict=True
    )
    keys = [node("feature", layer, feature, names[p]) for layer, feature, p in features]
    keys += [node("error", layer, None, name) for layer in range(x.n_layers) for name in names]
    keys += [node("token", None, None, name) for name in names]
    keys += [node("bias", layer, None, None) for layer in range(x.n_layers + 2)]
    return keys


def _key(node: Mapping[str, Any]) -> str:
    return node_id(node["type"], node["layer"], node["feature"], node["position"])
