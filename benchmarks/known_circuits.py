"""Peers on the known circuits, beside our own methods: `python -m benchmarks.known_circuits`.

Edges between components over all positions, by auto-circuit (attribution patching, integrated gradients, ACDC) and by
ours; nodes at named positions by TransformerLens' activation patching. One environment, made once in build/peers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import write
from benchmarks.peers import HERE, run_worker
from mechstudy.circuits.components import Components, HeadAt
from mechstudy.referee.bench import EDGE_METHODS, RankingScores, edge_effects_of, node_effects
from mechstudy.referee.known_circuit import KnownCircuit
from mechstudy.referee.suite import COMPILED, known_circuits

PEER = "auto_circuit"
NAMES = tuple(name for name in COMPILED if not name.startswith("boolean"))


def main() -> None:
    """Print a table; of all circuits, keep every score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--circuits", nargs="+", default=list(NAMES), choices=NAMES)
    asked = parser.parse_args()
    rows = [row for circuit in known_circuits(asked.circuits) for row in compared(circuit)]
    if set(asked.circuits) == set(NAMES):
        write(HERE / "results" / "known_circuits.json", rows=rows)
    for kind in ("edge", "node"):
        some = [row for row in rows if row["kind"] == kind]
        methods = list(dict.fromkeys(row["method"] for row in some))
        print(
            f"\n{kind}s: AUROC (F1 at true size)\n| circuit | {' | '.join(methods)} |\n|{'---|' * (1 + len(methods))}"
        )
        for name in asked.circuits:
            of = {row["method"]: row for row in some if row["circuit"] == name}
            print(f"| {name} | " + " | ".join(f"{of[m]['auroc']:.3f} ({of[m]['f1']:.2f})" for m in methods) + " |")
        mean = {m: [row["auroc"] for row in some if row["method"] == m] for m in methods}
        print("| mean | " + " | ".join(f"{sum(v) / len(v):.3f}" for v in mean.values()) + " |")


def compared(circuit: KnownCircuit) -> list[dict[str, Any]]:
    """A row for each method."""
    assert isinstance(circuit.universe, Components)
    with tempfile.TemporaryDirectory() as folder:
        export(circuit, Path(folder))
        theirs = run_worker(PEER, "known", folder)
    rows = []
    for method in EDGE_METHODS:
        frame = edge_effects_of(circuit, method).frame
        effects: dict[tuple[str, str], float] = {}
        for source, target, effect in zip(frame["source"], frame["target"], frame["effect"], strict=True):
            effects[source, target] = effects.get((source, target), 0.0) + effect
        rows.append(_edges(circuit, method, effects))
    names = list(effects)
    for found in theirs:
        if "edges" in found:
            own = {_ours(edge): score for edge, score in found["edges"].items() if not edge.startswith("Resid Start")}
            rows.append(_edges(circuit, found["method"], {name: own[name] for name in names}))
        else:
            rows.append(_nodes(circuit, found["method"], _at_names(circuit, found["nodes"])))
    patched = node_effects(circuit, "patching")
    return [*rows, _nodes(circuit, "patching", patched)]


def export(circuit: KnownCircuit, folder: Path) -> None:
    """The model and its training pairs, as the worker reads them."""
    hf = circuit.model.hf
    hf.save_pretrained(folder)
    pairs = [
        {"clean": p.clean_tokens, "corrupted": p.corrupted_tokens, "right": p.answer_tokens, "wrong": p.wrong_tokens}
        for p in circuit.train
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs))


def _ours(edge: str) -> tuple[str, str]:
    source, _, target = edge.partition(" -> ")
    return _component(source), _component(target)


def _component(name: str) -> str:
    if name == "Resid End":
        return "logits"
    return f"mlp.{name.removeprefix('MLP ')}" if name.startswith("MLP ") else f"head.{name.removeprefix('A')}"


def _edges(circuit: KnownCircuit, method: str, effects: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    true = {(edge.source, edge.target) for edge in circuit.edges}
    members = torch.tensor([name in true for name in effects])
    assert int(members.sum()) == len(true), "every true edge is among those that are scored"
    scores = RankingScores.of(torch.tensor(list(effects.values()), dtype=torch.float64), [members])
    return {"circuit": circuit.name, "kind": "edge", "method": method, "n": len(effects)} | vars(scores)


def _nodes(circuit: KnownCircuit, method: str, effect_N: Tensor) -> dict[str, Any]:
    scores = RankingScores.of(effect_N, [circuit.members()])
    return {"circuit": circuit.name, "kind": "node", "method": method, "n": len(effect_N)} | vars(scores)


def _at_names(circuit: KnownCircuit, of_pairs: Sequence[Mapping[str, Any]]) -> Tensor:
    """Effects of single tokens, added over the tokens of each name, as means over pairs."""
    nodes = circuit.universe.nodes
    effect_N = torch.zeros(len(nodes), dtype=torch.float64)
    for pair, found in zip(circuit.train, of_pairs, strict=True):
        number_T = circuit.universe.positions.numbers([pair])[0].tolist()
        heads, mlps = torch.tensor(found["heads"]), torch.tensor(found["mlps"])  # [layer, position, head], [layer, p]
        for i, node in enumerate(nodes):
            name = circuit.universe.positions.names.index(node.position)
            at = [t for t, number in enumerate(number_T) if number == name]
            of_layer = heads[node.layer, :, node.head] if isinstance(node, HeadAt) else mlps[node.layer]
            effect_N[i] += of_layer[at].sum() / len(of_pairs)
    return effect_N


if __name__ == "__main__":
    main()
