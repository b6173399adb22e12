"""A behaviour's graph, aggregated from the graphs of its prompts.

Its nodes are named by position (`node_names`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from mechstudy.circuits.config import AttributionConfig, Elsewhere
from mechstudy.circuits.node_names import ANSWER, OTHER, in_order, is_named, node_id

_MEANS = (
    "replacement", "completeness", "replacement_pruned", "completeness_pruned", "replacement_among_rows",
    "completeness_among_rows",
)  # fmt: skip
_HEADS = 50
_QK_EDGES = 100
_FELT = 0.01  # influence from which a prompt counts as one whose graph runs through a head
_EFFECTS = ("total_effect", "live_effect", "contrast_effect")
_INSTANCES = 200  # strongest edges that carry their per-prompt weights, for the causal checks


def scores_of(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of scores.json: means over prompts of each graph's ``score``, and the scores themselves.

    ``path_gap``: the largest over prompts of each gap, where graphs explain differences.
    """
    gaps = [s["path_gap"] for s in scores if "path_gap" in s]
    largest = {name: max((g[name] for g in gaps if g[name] is not None), default=None) for gap in gaps for name in gap}
    return (
        {"n_prompts": len(scores)}
        | {"nodes": fmean(s["n_nodes_pruned"] for s in scores), "edges": fmean(s["n_edges_pruned"] for s in scores)}
        | {name: fmean(s[name] for s in scores) for name in _MEANS}
        | {"conservation_residual_max": max(s["conservation_residual_max"] for s in scores)}
        | ({"path_gap": largest} if gaps else {})
        | {"per_prompt": list(scores)}
    )


def aggregate_of(
    records: Sequence[Mapping[str, Any]],
    config: AttributionConfig,
    *,
    behaviour: str,
    positions: Sequence[str],
    layers: Iterable[int],
    n_layers: int,
    neuron_layers: Sequence[int] = (),
    elsewhere: Elsewhere = "errors",
    contrast: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of aggregate.json.

    Args:
        records: `prompt_record` of every prompt.
        positions: names of the prompts' positions, from left to right.
        layers: layers that have a dictionary, of the model's ``n_layers``.
        neuron_layers: layers whose neurons are nodes.
        elsewhere: what the MLPs of layers without nodes are.
        contrast: how effects of replacement were predicted (`Replacements.about`).
    """
    graph = aggregate(records, config)
    used = {str(node["position"]) for node in graph["nodes"] if node["position"] is not None}
    return {
        "behaviour": behaviour,
        "target": config.target,
        "n_prompts": len(records),
        "positions": [*in_order(used, positions), OTHER],
        "layers_with_dictionaries": sorted(layers),
        "n_layers": n_layers,
        **({"neuron_layers": list(neuron_layers)} if neuron_layers else {}),
        **({"elsewhere": elsewhere} if elsewhere != "errors" else {}),
        **({"contrast": dict(contrast)} if contrast else {}),
        **({"explains": config.explains} if config.explains else {}),
    } | graph


def aggregate(records: Sequence[Mapping[str, Any]], config: AttributionConfig) -> dict[str, Any]:
    """The most influential nodes and edges over all prompts.

    ``frequency`` is the share of prompts whose pruned graph has the node or edge, ``presence`` the share on which
    a feature is active (on the corrupted prompt too, where that replaces it); ``influence`` and effects are means over
    all prompts (absent counts 0); ``activation`` and an edge's ``weight`` are means over the prompts that have it. The
    strongest edges of each kind between features at named positions, or from one to the target, carry ``instances``,
    [prompt id, weight] of every prompt, unless graphs explain differences. ``heads`` are those that edges run through
    (`head_flow`).
    """
    n = len(records)
    by_key: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        for key, node in record["nodes"].items():
            by_key[key].append(node)
    nodes = {key: _node(key, of_prompts, n) for key, of_prompts in by_key.items()}
    nodes[node_id("logit")] = {
        "id": node_id("logit"), "type": "logit", "layer": None, "feature": None, "position": "last",
        "frequency": 1.0, "presence": 1.0, "influence": 1.0, "total_effect": 0.0, "live_effect": 0.0,
        "activation": None, "label": "target",
    }  # fmt: skip
    kept = _chosen(nodes.values(), config, n)
    # Interventions measure edges of the clean prompt's value only.
    edges = _edges(records, {node["id"] for node in kept}, n, measured=not config.explains)
    return {"nodes": kept, "edges": edges, "qk_edges": _qk_edges(records), "heads": _heads(records)}


def _qk_edges(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The strongest edges through attention patterns: means over all prompts, between any nodes.

    Beside the strongest of all stand the strongest that interventions can measure.
    """
    weights: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for record in records:
        for edge in record.get("qk_edges", ()):
            weights[edge["source"], edge["target"]].append((record["prompt_id"], edge["weight"]))
    n = len(records)
    edges: list[dict[str, Any]] = [
        {
            "source": source,
            "target": target,
            "weight": sum(w for _, w in instances) / n,
            "strength": sum(abs(w) for _, w in instances) / n,
            "frequency": len(instances) / n,
        }
        for (source, target), instances in weights.items()
    ]
    edges.sort(key=lambda edge: (-edge["strength"], edge["source"], edge["target"]))
    with_instances = _with_instances(edges, weights)
    return [edge for i, edge in enumerate(edges) if i < _QK_EDGES or i in with_instances]


def _with_instances(
    edges: Sequence[dict[str, Any]], weights: Mapping[tuple[str, str], list[tuple[str, float]]]
) -> set[int]:
    """Adds the weights by prompt to the first edges that interventions can measure; their numbers."""
    chosen = [i for i, edge in enumerate(edges) if _checkable(edge)][:_INSTANCES]
    for i in chosen:
        edges[i]["instances"] = weights[edges[i]["source"], edges[i]["target"]]
    return set(chosen)


def _heads(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The heads that most influence passes first, at named query positions: means over prompts."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for head, influence in record.get("heads", {}).items():
            values[head].append(influence)
    n = len(records)
    found: list[dict[str, Any]] = [
        {"id": head, "influence": sum(of_head) / n, "frequency": sum(v >= _FELT for v in of_head) / n}
        for head, of_head in values.items()
        if not head.endswith((f"@{OTHER}", f"@{ANSWER}"))
    ]
    return sorted(found, key=lambda head: (-head["influence"], head["id"]))[:_HEADS]


def _node(key: str, of_prompts: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    first = of_prompts[0]
    is_feature = first["type"] == "feature"
    present = [node for node in of_prompts if node.get("active", True)]
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
        **({"relative": True} if first.get("relative") else {}),
        "frequency": sum(node["kept"] for node in of_prompts) / n,
        "presence": len(present) / n,
        "influence": sum(node["influence"] for node in of_prompts) / n,
        "total_effect": sum(node["total_effect"] for node in of_prompts) / n,
        "live_effect": sum(node["live_effect"] for node in of_prompts) / n,
        **_contrast(of_prompts, n),
        "activation": fmean([a for node in of_prompts if (a := node["activation"])] or [0.0]) if is_feature else None,
        "label": label,
    }


def _contrast(of_prompts: Sequence[Mapping[str, Any]], n: int) -> dict[str, float]:
    """The mean effect of replacement, where it was predicted."""
    effects = [node["contrast_effect"] for node in of_prompts if "contrast_effect" in node]
    return {"contrast_effect": sum(effects) / n} if effects else {}


def _chosen(nodes: Iterable[dict[str, Any]], config: AttributionConfig, n: int) -> list[dict[str, Any]]:
    """Nodes that recur, by influence, and the features of the largest effects at named positions."""
    ordered = sorted(nodes, key=lambda node: (-node["influence"], node["id"]))
    needed = min(config.aggregate_min_prompts, n) / n
    recurring = [node for node in ordered if node["frequency"] >= needed or node["type"] in ("logit", "token")]
    kept = {node["id"]: node for node in recurring[: config.aggregate_nodes]}
    named = [node for node in ordered if node["type"] == "feature" and is_named(node)]
    for effect in _EFFECTS:
        largest = sorted((node for node in named if effect in node), key=lambda node: (-abs(node[effect]), node["id"]))
        kept |= {node["id"]: node for node in largest[: config.aggregate_nodes]}
    return sorted(kept.values(), key=lambda node: (-node["influence"], node["id"]))


def _edges(records: Sequence[Mapping[str, Any]], kept: set[str], n: int, *, measured: bool) -> list[dict[str, Any]]:
    weights: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for record in records:
        for edge in record["edges"]:
            if edge["source"] in kept and edge["target"] in kept:
                weights[edge["source"], edge["target"]].append((record["prompt_id"], edge["weight"]))
    edges: list[dict[str, Any]] = []
    for (source, target), instances in weights.items():
        values = [w for _, w in instances]
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
    if measured:
        _with_instances(edges, weights)
    return edges


def _checkable(edge: Mapping[str, Any]) -> bool:
    """Whether interventions can measure the edge: from a feature at a named position to another or to the target."""
    source, target = edge["source"], edge["target"]
    unnamed = (f"@{OTHER}", f"@{ANSWER}")
    return (
        source.startswith("f.")
        and target.startswith(("f.", "logit"))
        and not (source.endswith(unnamed) or target.endswith(unnamed))
    )
