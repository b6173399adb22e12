"""Synthetic records of features, as features.json has them, for tests of the report only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Any

from tests.support.report_graphs import HOSTILE


def feature_page(
    random: Random, vocabulary: Sequence[str], layer: int, feature: int, k: int, behaviours: Sequence[str]
) -> dict[str, Any]:
    """The record of the ``k``-th feature of a layer; every fifth is a neuron, every tenth is of an earlier version."""
    examples = []
    favourite = random.choice(vocabulary[:24])
    for document in range(6):
        tokens = [random.choice(vocabulary) for _ in range(64)]
        peak = random.randrange(64)
        tokens[peak] = HOSTILE if k == 0 and document == 0 else favourite
        activations = [round(random.random() * 2, 3) if random.random() < 0.1 else 0.0 for _ in tokens]
        activations[peak] = 9.0 - document
        examples.append({"tokens": tokens, "activations": activations, "peak": peak, "document": document})
    shuffled = random.sample(vocabulary, 10)
    neuron = k % 5 == 1
    return {
        "layer": layer, "feature": feature, "kind": "neurons" if neuron else "skip_transcoder",
        "frequency": 10 ** -random.uniform(1.5, 4),
        "mean_activation": 2.2, "max_activation": 9.0,
        "label": {
            "rule": f"on «{favourite.strip()}»", "claimed": k % 2 == 0, "score": 0.9 - 0.05 * (k % 5),
            "shuffled": 0.5, "precision": 0.6, "recall": 0.8, "n": 40, "sign": 1,
        },
        "top_logits": [{"token": t, "value": 2 - 0.1 * i} for i, t in enumerate(shuffled)],
        "bottom_logits": [{"token": t, "value": -2 + 0.1 * i} for i, t in enumerate(shuffled[::-1])],
        "examples": examples,
        **({} if k % 10 == 9 else activation_range(examples[1], neuron)),
        "graphs": {b: {"influence": random.random() * 0.1, "frequency": 0.7, "positions": ["end"]}
                   for b in behaviours if k < 9},
    }  # fmt: skip


def activation_range(example: Mapping[str, Any], signed: bool) -> dict[str, Any]:
    """Histogram and intervals of a feature of 37 bins above zero, and of nine below, with an example of each."""
    counts, width = [5000 // (1 + i) ** 2 for i in range(34)] + [0, 0, 1], 0.25
    sides = {1: counts, -1: counts[:9] if signed else []}
    intervals: list[dict[str, Any]] = []
    for sign, side in sides.items():
        edges = [len(side) * i // 5 for i in range(6)] if side else []
        for start, stop in pairwise(edges):
            low, high = sorted((sign * start * width, sign * stop * width))
            scale = (low + high) / 2 / example["activations"][example["peak"]]
            drawn = {**example, "activations": [scale * value for value in example["activations"]]}
            count = sum(side[start:stop])
            intervals.append({"low": low, "high": high, "count": count, "examples": [drawn] if count else []})
    intervals.sort(key=lambda one: -one["high"])
    histogram = {"bin_width": width, "positive": sides[1], "negative": sides[-1]}
    return {"histogram": histogram, "intervals": intervals}
