"""One prompt's part of a behaviour's graph, whose nodes are named by position (`node_names`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mechstudy.circuits.graph import Graph, Pruned
from mechstudy.circuits.graph_attention import Attention
from mechstudy.circuits.head_flow import HeadFlow
from mechstudy.circuits.node_effects import NodeEffects
from mechstudy.circuits.node_names import ANSWER, OTHER, aligned_names, node_id

_NOTHING = {"influence": 0.0, "total_effect": 0.0, "live_effect": 0.0, "activation": 0.0, "kept": False}
_CONTRASTED = 20_000  # features of a prompt whose effects of replacement are kept: all, but where neurons are nodes
_LEAST = 1e-3  # of a prompt's largest effect: what inactive features need to be nodes


def prompt_record(
    prompt_id: str,
    graph: Graph,
    pruned: Pruned,
    positions: Mapping[str, int],
    live_S: Tensor | None = None,
    n_prompt: int | None = None,
    effects: NodeEffects | None = None,
    attention: Attention | None = None,
) -> dict[str, Any]:
    """One prompt's part of the aggregate: JSON of its nodes and of its pruned graph's edges.

    Every expanded feature is a node (``kept`` marks those that survive pruning), and with ``effects`` every active
    feature at a named position, so that a feature's mean effect over prompts does not depend on where pruning cut.

    Args:
        live_S: `live.live_effects` of the feature columns.
        n_prompt: the tokens of the prompt, if an answer's follow.
        attention: the heads that the graph's edges run through, and its edges through patterns.
        effects: of replacing nodes. They add features that are not active on the prompt and whose replacement counts;
            ``active`` marks those that are, or are on the corrupted prompt.
    """
    x = graph.index
    names = aligned_names(positions, x.n_positions, n_prompt)
    source_I, _ = graph.influence
    totals = graph.total_effects_S
    keys = _source_keys(graph, names, positions)
    shown = pruned.sources_S | graph.expanded_S
    if effects is not None:
        named_T = torch.tensor([name in positions for name in names])
        shown[: x.n_features] |= named_T[graph.feature_position_S[: x.n_features]]
    nodes: dict[str, dict[str, Any]] = {}
    for column in shown.nonzero()[:, 0].tolist():
        node = dict(keys[column])
        key = node_id(node["type"], node["layer"], node["feature"], node["position"])
        total = nodes.setdefault(key, node | _NOTHING)
        total["influence"] += float(source_I[column])
        total["total_effect"] += float(totals[column])
        if node["type"] == "feature":
            total["activation"] = max(total["activation"], float(graph.activation_S[column]))
            total["live_effect"] += 0.0 if live_S is None else float(live_S[column])
        total["kept"] |= bool(pruned.sources_S[column])
    if effects is not None:
        _add_contrast(nodes, effects, names, positions)
    edges: dict[tuple[str, str], float] = defaultdict(float)
    row_keys = [_key(keys[c]) if c >= 0 else node_id("logit") for c in graph.column_R.tolist()]
    for row, column in pruned.edges():
        weight = float(graph.A_RS[row, column])
        if graph.column_R[row] < 0:
            weight *= float(graph.weights_R[row])
        edges[_key(keys[column]), row_keys[row]] += weight
    qk_edges: dict[tuple[str, str], float] = defaultdict(float)
    for row, column, weight in () if attention is None else attention.score_edges:
        qk_edges[_key(keys[column]), row_keys[row]] += weight
    return {
        "prompt_id": prompt_id,
        "nodes": nodes,
        "qk_edges": [{"source": s, "target": t, "weight": w} for (s, t), w in qk_edges.items()],
        "edges": [{"source": s, "target": t, "weight": w} for (s, t), w in edges.items()],
        "heads": _named_heads(None if attention is None else attention.flow, names),
    }


def _named_heads(flow: HeadFlow | None, names: Sequence[str]) -> dict[str, float]:
    """The influence that passes each head first, by head and name of the query position."""
    heads: dict[str, float] = defaultdict(float)
    for (layer, head, query), influence in (flow.heads if flow is not None else {}).items():
        heads[f"head.{layer}.{head}@{names[query]}"] += influence
    return dict(heads)


def _add_contrast(
    nodes: dict[str, dict[str, Any]], effects: NodeEffects, names: Sequence[str], positions: Collection[str]
) -> None:
    """Adds the effects of replacement to nodes that are there, and the features that only they concern."""
    for node in nodes.values():
        node |= {"contrast_effect": 0.0, "active": True}
    least = _LEAST * float(effects.effect_M.abs().max()) if len(effects.effect_M) else 0.0
    effects = effects.strongest(_CONTRASTED)
    columns = (effects.layer_M, effects.feature_M, effects.position_M, effects.own_M, effects.other_M, effects.effect_M)
    for layer, feature, at, own, other, effect in zip(*(column.tolist() for column in columns), strict=True):
        key = node_id("feature", layer, feature, names[at])
        if key not in nodes:
            active = own != 0 or (effects.other_is_a_run and other != 0)
            if names[at] not in positions or (not active and abs(effect) < least):
                continue
            place = {"type": "feature", "layer": layer, "feature": feature, "position": names[at]}
            nodes[key] = place | _NOTHING | {"contrast_effect": 0.0, "active": active}
        nodes[key]["contrast_effect"] += effect
    for layer, error_T in effects.error_T.items():
        for at, effect in enumerate(error_T.tolist()):
            if (key := node_id("error", layer, None, names[at])) in nodes:
                nodes[key]["contrast_effect"] += effect


def _source_keys(graph: Graph, names: Sequence[str], positions: Collection[str]) -> list[dict[str, Any]]:
    """Type, layer, feature and position name of every column of the matrix, and whether that is ``relative``."""
    relative = {name for name in names if name not in (OTHER, ANSWER, *positions)}
    keys: list[dict[str, Any]] = []
    for source in graph.sources():
        feature = source.feature if source.type == "feature" else None
        position = None if source.position is None else names[source.position]
        keys.append({"type": source.type, "layer": source.layer, "feature": feature, "position": position})
        if position in relative:
            keys[-1]["relative"] = True
    return keys


def _key(node: Mapping[str, Any]) -> str:
    return node_id(node["type"], node["layer"], node["feature"], node["position"])
