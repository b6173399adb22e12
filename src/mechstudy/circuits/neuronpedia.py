"""Attribution graphs as JSON that circuit-tracer writes and Neuronpedia reads (``schema_version`` 1).

That format has neither bias nodes nor a ledger. They are added as nodes with ``feature_type: "bias"`` and under
``metadata.mechstudy``, which other readers skip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mechstudy._version import __version__
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import Graph, Ledger, Pruned, Source
from mechstudy.circuits.graph_attention import Attention
from mechstudy.circuits.head_pairs import HeadPairs, Summand

_REVERSED = 0  # reverse_ctx_idx: circuit-tracer writes 0 everywhere

_HEADS = 50  # listed
REST = "rest"  # of a query or a key: what no listed node or head wrote


def graph_json(
    graph: Graph,
    pruned: Pruned,
    *,
    slug: str,
    scan: str,
    prompt: str,
    token_strings: Sequence[str],
    config: AttributionConfig,
    extra: Mapping[str, Any],
    attention: Attention | None = None,
) -> dict[str, Any]:
    """The pruned graph as JSON.

    Args:
        slug: the graph's name.
        scan: the model's name.
        extra: fields under ``metadata.mechstudy``, beside the ledger.
        attention: the heads that edges run through, of which the strongest edges get their parts; edges through
            attention patterns, listed under ``metadata.mechstudy.qk_links``; and what scores are made of
            (``head_pairs``).
    """
    attention = attention or Attention()
    share_S = _cumulative_shares(graph)
    sources = graph.sources()
    ids = [_source_id(source) for source in sources]
    nodes = [_logit_node(graph, row, token_strings) for row in range(len(graph.logits))]
    row_ids = [node["node_id"] for node in nodes]
    row_ids += [ids[c] for c in graph.column_R[len(graph.logits) :].tolist()]
    for column in pruned.sources_S.nonzero()[:, 0].tolist():
        activation = float(graph.activation_S[column]) if column < graph.index.errors else None
        node = _source_node(sources[column], ids[column], float(share_S[column]), activation)
        nodes.append(node | _change(graph, column))
    rows_with_biases = range(len(graph.logits) if graph.summed else 1)
    biases = [(layer, row) for layer in range(graph.index.n_layers) for row in rows_with_biases]
    biases = [(layer, row) for layer, row in biases if _bias(graph, layer, row) != 0]
    nodes += [_bias_node(layer) for layer in dict.fromkeys(layer for layer, _ in biases)]
    links = [
        {"source": ids[column], "target": row_ids[row], "weight": float(graph.A_RS[row, column])}
        | (attention.flow.edges.get((row, column), {}) if attention.flow is not None else {})
        for row, column in pruned.edges()
    ]
    qk_links = [[ids[column], row_ids[row], weight] for row, column, weight in attention.score_edges]
    for layer, row in biases:
        links.append({"source": f"b_{layer}", "target": row_ids[row], "weight": _bias(graph, layer, row)})
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "prompt_tokens": list(token_strings),
            "prompt": prompt,
            "node_threshold": config.node_threshold,
            "schema_version": 1,
            "info": {
                "creator_name": "mechstudy",
                "creator_url": "",
                "generator": {"name": "mechstudy", "version": __version__},
                "transcoder_set": scan,
            },
            "generation_settings": {
                "max_n_logits": config.max_logits,
                "desired_logit_prob": config.logit_probability,
                "batch_size": 256,
                "max_feature_nodes": config.max_features,
            },
            "pruning_settings": {
                "node_threshold": config.node_threshold,
                "edge_threshold": config.edge_threshold,
            },
            "mechstudy": dict(extra) | _ledgers(graph) | _heads(attention, ids) | {"qk_links": qk_links},
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": row_ids[0],
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": links,
    }


def _change(graph: Graph, column: int) -> dict[str, float]:
    """What a feature's activation differs by from the corrupted prompt's, in the graph of a difference."""
    if graph.difference is None or column >= graph.index.errors:
        return {}
    return {"change": float(graph.difference.change_S[column])}


def _cumulative_shares(graph: Graph) -> Tensor:
    """circuit-tracer's ``influence`` of a node: the share of all influence held by it and the nodes above it.

    Small values are important; a viewer's threshold keeps nodes up to a share.
    """
    source_I, _ = graph.influence
    values, order = source_I.double().sort(descending=True, stable=True)
    shares = torch.empty_like(values)
    shares[order] = values.cumsum(0) / values.sum().clamp_min(1e-30)
    return shares


def _heads(attention: Attention, ids: Sequence[str]) -> dict[str, Any]:
    """The heads by the influence that passes them first: [layer, head, query position, influence]."""
    flow = attention.flow
    if flow is None:
        return {}
    ordered = sorted(flow.heads.items(), key=lambda item: -item[1])[:_HEADS]
    return {
        "heads": [[*place, influence] for place, influence in ordered],
        "heads_share": flow.share,
        "head_pairs": [_pairs(pairs, ids) for pairs in attention.pairs],
    }


def _pairs(pairs: HeadPairs, ids: Sequence[str]) -> dict[str, Any]:
    """The largest terms of one score, [at the query, at the key, term], by ids of nodes, heads and the rest."""

    def name(summand: Summand) -> str:
        if summand is None:
            return REST
        return "head.{}.{}".format(*summand) if isinstance(summand, tuple) else ids[summand]

    return asdict(pairs) | {"pairs": [[name(query), name(key), term] for query, key, term in pairs.pairs]}


def _ledgers(graph: Graph) -> dict[str, Any]:
    """The target's ledger and, where it is a sum, those of its parts."""

    def entries(ledger: Ledger) -> dict[str, float]:
        return asdict(ledger) | {"total": ledger.total, "residual": ledger.residual}

    ledgers: dict[str, Any] = {"ledger": entries(graph.target_ledger())}
    if graph.summed:
        parts = [{"label": logit.label} | entries(graph.ledger(row)) for row, logit in enumerate(graph.logits)]
        ledgers["ledgers"] = parts
    return ledgers


def _source_id(source: Source) -> str:
    layer, feature, position = source.layer, source.feature, source.position
    return {
        "feature": f"{layer}_{feature}_{position}",
        "error": f"{layer}_-1_{position}",
        "token": f"E_{feature}_{position}",
        "bias": f"b_{layer}",
    }[source.type]


def _node(node_id: str, feature: int, layer: str, position: int, kind: str, js_id: str, **extra: Any) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": _REVERSED,
        "jsNodeId": js_id,
        "clerp": "",
        "influence": None,
        "activation": None,
    } | extra


def _source_node(source: Source, node_id: str, influence: float, activation: float | None) -> dict[str, Any]:
    layer, feature, position = source.layer, source.feature, source.position
    assert position is not None  # biases have nodes of their own
    if source.type == "token":
        assert feature is not None
        return _node(node_id, position, "E", position, "embedding", f"E_{feature}-{position}", influence=influence)
    assert layer is not None
    if source.type == "error":
        return _node(
            node_id, -1, str(layer), position, "mlp reconstruction error", f"{layer}_{position}-0",
            influence=influence,
        )  # fmt: skip
    assert feature is not None
    paired = (layer + feature) * (layer + feature + 1) // 2 + feature  # Cantor pairing
    return _node(
        node_id, paired, str(layer), position, "cross layer transcoder", f"{layer}_{feature}-0",
        influence=influence, activation=activation,
    )  # fmt: skip


def _logit_node(graph: Graph, row: int, token_strings: Sequence[str]) -> dict[str, Any]:
    logit, layer = graph.logits[row], graph.index.n_layers + 1
    position = len(token_strings) - 1 if logit.position is None else logit.position
    return _node(
        f"{layer}_{logit.token}_{position}", logit.token, str(layer), position, "logit",
        f"L_{logit.token}-{position}", token_prob=logit.probability, is_target_logit=True, clerp=logit.label,
        influence=float(graph.weights_R[row]),
    )  # fmt: skip


def _bias(graph: Graph, layer: int, row: int) -> float:
    return float(graph.A_RS[row, graph.index.biases + layer])


def _bias_node(layer: int) -> dict[str, Any]:
    return _node(f"b_{layer}", -2, str(layer), 0, "bias", f"b_{layer}-0", clerp=f"constants of layer {layer}")
