"""circuit-tracer's graph of a prompt and ours, edge by edge and in seconds: `python -m benchmarks.adjacency`.

Both explain the same ten logits of SmolLM2 with the same 30 random JumpReLU transcoders, some 40 features active per
token. circuit-tracer is PyPI's, in the environment of the peer tests. Ours runs before and after it, in one process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.peers.environment import python_of_peers
from tests.peers.graphs import compared
from tests.peers.worker import Worker

import mechstudy as ms
from benchmarks.attribution import MODEL, TEXT, product_rate, random_transcoders
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.graph import Graph, prune
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.circuit_tracer import write_set
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

LOGITS = 10


def jumping_transcoders(model: LanguageModel, tokens: list[int], width: int, k: int) -> dict[int, Dictionary]:
    """Random transcoders whose thresholds leave k features active per token of the prompt."""
    sites = [Site("mlp_in", layer) for layer in range(model.n_layers)]
    read = model.forward(torch.tensor([tokens]), capture=sites).activations
    made: dict[int, Dictionary] = {}
    for layer, drawn in random_transcoders(model, width, k).items():
        assert isinstance(drawn, Dictionary)
        pre_TF = read[Site("mlp_in", layer)][0] @ drawn.W_enc
        threshold = torch.full((width,), float(pre_TF[1:].flatten().quantile(1 - k / width)))
        meta = replace(drawn.cfg, activation="jumprelu", k=None)
        made[layer] = Dictionary(
            meta, W_enc=drawn.W_enc, b_enc=drawn.b_enc, W_dec=drawn.W_dec, b_dec=drawn.b_dec, threshold=threshold
        )
    return made


def ours(
    model: LanguageModel, dictionaries: dict[int, Any], tokens: list[int], rows: int
) -> tuple[Graph, dict[str, Any]]:
    """A graph, and its seconds."""
    config = AttributionConfig(target="logits", max_logits=LOGITS, logit_probability=1.0, max_features=rows)
    began = time.perf_counter()
    graph = attribute(model, dictionaries, torch.tensor(tokens), config)
    attributed = time.perf_counter()
    prune(graph, config.node_threshold, config.edge_threshold)
    return graph, {"attribute": attributed - began, "prune": time.perf_counter() - attributed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=15)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--k", type=int, default=40)
    options = parser.parse_args()
    model = ms.load_model(MODEL, dtype="float32")
    # circuit-tracer puts a special token first where there is none.
    text = model.encode(TEXT) * (1 + options.tokens // 10)
    tokens = [model.tokenizer.bos_token_id, *text[: options.tokens - 1]]
    dictionaries = jumping_transcoders(model, tokens, options.width, options.k)
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "set", Path(name) / "graph.safetensors"
        write_set(dictionaries, folder, model_name="smollm2")
        model.hf.save_pretrained(Path(name) / "model")
        model.tokenizer.save_pretrained(Path(name) / "model")
        first = ours(model, dictionaries, tokens, options.rows)[1]
        worker = Worker(python_of_peers(), "circuit_tracer", Path(name) / "log.txt", torch.get_num_threads())
        theirs = worker(
            "graph", model=Path(name) / "model", dictionaries=folder, tokens=tokens, n_features=options.rows,
            n_logits=LOGITS, out=out,
        )  # fmt: skip
        worker.close()
        graph, second = ours(model, dictionaries, tokens, options.rows)
        both = compared(graph, load_file(out))
    result = {
        "tokens": len(tokens),
        "active": graph.index.n_features,
        "circuit_tracer": theirs,
        "ours_seconds": [first, second],
        "ours_scores": asdict(graph.scores_among_rows()),
        "same_active": both.same_active,
        "same_logits": both.same_logits,
        "rows": both.rows,
        "largest_difference": float(both.difference_RC.max()),
        "product_gflops": product_rate() / 1e9,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
