"""Graphs with planted groups of features, and how well a partition finds them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np


def planted_json(
    seed: int, noise: float, n_groups: int = 6, n_members: int = 5, n_ends: int = 24
) -> tuple[dict[str, Any], dict[str, int]]:
    """A prompt's graph whose features of one group have equal profiles plus noise, and the group of each.

    Edges come from ``n_ends`` tokens, and go to as many outputs. A group's profile is drawn from a normal distribution
    for each end; a member's is that, plus normal noise of ``noise`` times its deviation, times a scale of its own.
    """
    draw = np.random.default_rng(seed)
    tokens = [{"node_id": f"E_{i}_0", "feature_type": "embedding", "layer": "E", "ctx_idx": 0} for i in range(n_ends)]
    outputs = [{"node_id": f"9_{i}_0", "feature_type": "logit", "layer": "9", "ctx_idx": 0} for i in range(n_ends)]
    order = draw.permutation(n_groups * n_members)
    nodes, links, truth = [], [], {}
    for place in order.tolist():
        name, group = f"{1 + place % 7}_{place}_0", place // n_members
        truth[name] = group
        nodes.append({"node_id": name, "feature_type": "cross layer transcoder", "layer": name[0], "ctx_idx": 0})
    profiles = draw.normal(size=(n_groups, 2, n_ends))
    for name, group in truth.items():
        own = (profiles[group] + noise * draw.normal(size=(2, n_ends))) * draw.lognormal()
        links += [{"source": t["node_id"], "target": name, "weight": w} for t, w in zip(tokens, own[0], strict=True)]
        links += [{"source": name, "target": o["node_id"], "weight": w} for o, w in zip(outputs, own[1], strict=True)]
    metadata = {"prompt": "x", "prompt_tokens": ["x"]}
    return {"metadata": metadata, "nodes": [*outputs, *tokens, *nodes], "links": links}, truth


def adjusted_rand(a: Sequence[object], b: Sequence[object]) -> float:
    """The adjusted Rand index of two partitions (Hubert & Arabie 1985): 1 for equal ones, 0 on average by chance."""
    both = sum(math.comb(n, 2) for n in Counter(zip(a, b, strict=True)).values())
    in_a, in_b = (sum(math.comb(n, 2) for n in Counter(one).values()) for one in (a, b))
    expected = in_a * in_b / math.comb(len(a), 2)
    most = (in_a + in_b) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)
