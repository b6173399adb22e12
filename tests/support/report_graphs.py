"""Synthetic attribution graphs in the formats of their files, for tests of the report: no number here was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

HOSTILE = "</script><img src=x onerror=alert(1)>"
LAYERS = tuple(range(10, 20))
POSITIONS = {
    "subject_verb_agreement": ["start", "subject", "preposition", "attractor", "end"],
    "country_capital": ["start", "country", "end"],
}
WORDS = [
    "", "keys", "cabinet", "are", "is", "were", "the", "of", "near", "old", "red", "dog", "cats", "walks", "walk",
    "France",
    "Paris", "Rome", "Italy", "capital", "said", "that", "many", "doctor", "friends", "with", "by",
]  # fmt: skip


def prompt_graph(
    random: Random, features: Mapping[int, Sequence[int]], slug: str, n_nodes: int, n_edges: int
) -> dict[str, Any]:
    """A graph's file of about this many nodes and edges."""
    tokens = [random.choice(WORDS) for _ in range(12)]
    tokens = [f" {t}" if i else t for i, t in enumerate(tokens)]
    tokens[3], tokens[5] = HOSTILE, "\u2028\n"
    nodes: list[dict[str, Any]] = []

    def add(node_id: str, kind: str, layer: str, position: int, **extra: Any) -> None:
        nodes.append(
            {
                "node_id": node_id, "feature": None, "layer": layer, "ctx_idx": position, "feature_type": kind,
                "token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0,
                "jsNodeId": node_id, "clerp": "", "influence": None, "activation": None, **extra,
            }
        )  # fmt: skip

    for i, token in enumerate(tokens):
        add(f"E_{i + 100}_{i}", "embedding", "E", i, clerp=token)
    placed = set()
    while len(nodes) < n_nodes:
        layer, position = random.choice(LAYERS), min(11, int(12 * random.random() ** 0.5))
        feature = random.choice(features[layer]) if n_nodes < 500 else random.randrange(2304)
        if (layer, feature, position) in placed:
            continue
        placed.add((layer, feature, position))
        influence = random.paretovariate(1.2) * 1e-4
        add(f"{layer}_{feature}_{position}", "cross layer transcoder", str(layer), position,
            feature=(layer + feature) * (layer + feature + 1) // 2 + feature, influence=influence,
            activation=random.expovariate(0.3))  # fmt: skip
    for layer in LAYERS:
        add(f"b_{layer}", "bias", str(layer), 0, influence=2e-4)
        for position in range(6, 12):
            add(f"{layer}_-1_{position}", "mlp reconstruction error", str(layer), position, influence=3e-4)
    for k, word in enumerate((" are", " is", HOSTILE)):
        add(f"31_{k + 5}_11", "logit", "31", 11, clerp=f'Output "{word}" (p={0.6 / (k + 1):.3f})',
            token_prob=0.6 / (k + 1), is_target_logit=k == 0)  # fmt: skip
    depth = {n["node_id"]: -1 if n["layer"] == "E" else int(n["layer"]) for n in nodes}
    links = {}
    for _ in range(20 * n_edges):
        a, b = random.choice(nodes), random.choice(nodes)
        ends = b["feature_type"] in ("cross layer transcoder", "logit") and a["feature_type"] != "logit"
        if ends and depth[a["node_id"]] < depth[b["node_id"]] and a["ctx_idx"] <= b["ctx_idx"]:
            links[(a["node_id"], b["node_id"])] = random.gauss(0, 1) * random.paretovariate(2)
        if len(links) >= n_edges:
            break
    ledger = {"features": 2.4, "errors": 0.7, "tokens": 0.35, "biases": -0.2}
    return {
        "metadata": {
            "slug": slug, "scan": "smollm2", "prompt_tokens": tokens, "prompt": "".join(tokens),
            "schema_version": 1,
            "node_threshold": 0.8,
            "mechstudy": {
                "positions": {"subject": 2, "attractor": 7, "end": 11}, "answer": " are", "wrong_answer": " is",
                "logit_difference": 3.25,
                "scores": {
                    "replacement": 0.5 + random.uniform(-0.1, 0.1),
                    "completeness": 0.7 + random.uniform(-0.08, 0.08),
                    "replacement_pruned": 0.4 + random.uniform(-0.1, 0.1),
                    "completeness_pruned": 0.62 + random.uniform(-0.08, 0.08),
                    "replacement_among_rows": 0.6 + random.uniform(-0.08, 0.08),
                    "completeness_among_rows": 0.8 + random.uniform(-0.08, 0.08),
                    "conservation_residual_max": 1.4e-5,
                },
                "ledger": {**ledger, "total": 3.25, "target": 3.25002, "residual": -2e-5},
                "heads": [[12 + i, i % 9, 11 - i % 4, 0.2 / (i + 1)] for i in range(30)],
                "head_pairs": [
                    {"layer": 12, "head": 0, "query": 11, "key": 2, "influence": 0.1, "pattern": 0.6, "score": 3.5,
                     "pairs": [["head.10.3", "rest", 2.0], ["rest", nodes[0]["node_id"], -0.75]]}
                ],
                "qk_links": [[s, t, 0.05 * w] for (s, t), w in list(links.items())[:: max(1, n_edges // 40)]],
            },
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": [
            {"source": s, "target": t, "weight": w, "direct": 0.5 * w, "heads": [[12, 0, 11, 0.5 * w]]}
            for (s, t), w in links.items()
        ],
    }  # fmt: skip


def behaviour_graph(
    random: Random, features: Mapping[int, Sequence[int]], behaviour: str, n_prompts: int
) -> dict[str, Any]:
    """The content of aggregate.json."""
    names = POSITIONS[behaviour]
    nodes: list[dict[str, Any]] = [
        {"id": f"token@{p}", "type": "token", "layer": None, "feature": None, "position": p, "frequency": 1.0,
         "influence": 0.05, "activation": None, "label": p} for p in names
    ]  # fmt: skip
    for layer in LAYERS:
        for feature in features[layer][:9]:
            position = random.choice(names[1:])
            nodes.append({"id": f"f.{layer}.{feature}@{position}", "type": "feature", "layer": layer,
                          "feature": feature, "position": position, "frequency": random.uniform(0.3, 1),
                          "influence": random.paretovariate(1.1) * 1e-3, "activation": 4.2,
                          "label": ""})  # fmt: skip
        nodes.append({"id": f"error.{layer}@{names[-1]}", "type": "error", "layer": layer, "feature": None,
                      "position": names[-1], "frequency": 1.0, "influence": 0.004, "activation": None,
                      "label": ""})  # fmt: skip
        nodes.append({"id": f"b_{layer}", "type": "bias", "layer": layer, "feature": None, "position": None,
                      "frequency": 1.0, "influence": 0.001, "activation": None, "label": ""})  # fmt: skip
    nodes.append({"id": "logit", "type": "logit", "layer": None, "feature": None, "position": None,
                  "frequency": 1.0, "influence": None, "activation": None,
                  "label": "target"})  # fmt: skip
    depth = {n["id"]: -1 if n["type"] == "token" else 99 if n["type"] == "logit" else n["layer"] for n in nodes}
    order = {None: 0, **{p: i for i, p in enumerate(names)}}
    edges = []
    for b in nodes:
        if b["type"] not in ("feature", "logit"):
            continue
        for a in nodes:
            late = b["type"] == "logit" or order[a["position"]] <= order[b["position"]]
            if depth[a["id"]] < depth[b["id"]] and late and random.random() < 0.16:
                edges.append({"source": a["id"], "target": b["id"], "weight": random.gauss(0, 0.4),
                              "weight_sd": 0.05, "frequency": random.uniform(0.4, 1), "n": 20,
                              "strength": random.random()})  # fmt: skip
    qk_edges = [{"source": e["source"], "target": e["target"], "weight": 0.1 * e["weight"], "frequency": 0.5,
                 "strength": abs(0.1 * e["weight"])} for e in edges[::9]]  # fmt: skip
    heads = [{"id": f"head.{12 + i}.{i % 9}@{names[-1 - i % 2]}", "influence": 0.2 / (i + 1), "frequency": 0.9}
             for i in range(30)]  # fmt: skip
    return {"behaviour": behaviour, "target": "logit_difference", "n_prompts": n_prompts,
            "positions": [*names, "other"],
            "layers_with_dictionaries": list(LAYERS), "n_layers": 30, "nodes": nodes, "edges": edges,
            "qk_edges": qk_edges, "heads": heads}  # fmt: skip
