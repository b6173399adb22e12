"""Phase 4b: pages for the features that stand in the graphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``features.json``: examples with per-token activations, logits, frequency, and where it stands."""
    from mechstudy.corpus.corpus import Corpus
    from mechstudy.features.examples import collect_features, example_windows, logit_effects
    from mechstudy.study.phases.inputs import dictionaries_of, inputs_of, loaded_model

    dictionaries = dictionaries_of(inputs, runtime)
    graphs = features_in_graphs(inputs_of(inputs, "attribute"), spec["per_behaviour"])
    chosen: dict[int, list[int]] = defaultdict(list)
    for layer, feature in sorted(graphs):
        chosen[layer].append(feature)
    if not chosen:
        out.write_json("features.json", {"features": []})
        return
    model = loaded_model(inputs["model"], runtime, spec["model_dtype"])
    rows = Corpus.load(inputs["corpus"].path).train[: spec["documents"]].long()
    statistics = collect_features(
        model,
        dictionaries,
        dict(chosen),
        rows,
        spec["examples"],
        batch_tokens=runtime.batch_tokens,
        progress=runtime.progress,
    )
    logits = {
        (layer, feature): effects
        for layer, features in chosen.items()
        for feature, effects in zip(
            features, logit_effects(model, dictionaries[layer], features, spec["top_logits"]), strict=True
        )
    }
    pages = []
    for layer, feature, examples in example_windows(
        model, dictionaries, statistics, rows, spec["window"], batch_tokens=runtime.batch_tokens
    ):
        stats = statistics[layer]
        i = stats.features.index(feature)
        pages.append(
            {
                "layer": layer,
                "feature": feature,
                "kind": dictionaries[layer].cfg.kind,
                "frequency": float(stats.frequency_n[i]),
                "mean_activation": float(stats.mean_n[i]),
                "max_activation": float(stats.max_n[i]),
                **logits[layer, feature],
                "examples": examples,
                "graphs": graphs[layer, feature],
            }
        )
    out.write_json("features.json", {"features": pages, "rows_searched": int(rows.numel())}, indent=None)


def features_in_graphs(graphs: Mapping[str, Artifact], most: int) -> dict[tuple[int, int], dict[str, Any]]:
    """(layer, feature) -> behaviour -> where it stands: each behaviour's features of largest influence or effect."""
    found: dict[tuple[int, int], dict[str, Any]] = defaultdict(dict)
    for behaviour, artifact in graphs.items():
        nodes = [n for n in artifact.read_json("aggregate.json")["nodes"] if n["type"] == "feature"]
        taken: dict[tuple[int, int], dict[str, Any]] = {}
        rank: dict[str, int] = {}
        for measure in ("influence", "total_effect"):
            for place, node in enumerate(sorted(nodes, key=lambda n: -abs(n[measure]))):
                rank[node["id"]] = min(place, rank.get(node["id"], place))
        for node in sorted(nodes, key=lambda n: (rank[n["id"]], n["id"])):
            key = (node["layer"], node["feature"])
            if key not in taken and len(taken) >= most:
                continue
            entry = taken.setdefault(key, {"influence": 0.0, "frequency": 0.0, "total_effect": 0.0, "positions": []})
            entry["influence"] += node["influence"]
            entry["total_effect"] += node["total_effect"]
            entry["frequency"] = max(entry["frequency"], node["frequency"])
            entry["positions"].append(node["position"])
        for key, entry in taken.items():
            found[key][behaviour] = entry
    return dict(found)
