"""Phase 4: attribution graphs of one behaviour's train prompts, and their aggregate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter

_MEANS = (
    "n_nodes_pruned",
    "n_edges_pruned",
    "replacement",
    "completeness",
    "replacement_pruned",
    "completeness_pruned",
)


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``graphs/*.json``, ``graphs/graph-metadata.json``, ``aggregate.json``, ``scores.json`` and
    ``timing.json``; a killed run goes on with the next prompt."""
    from mechstudy.circuits.aggregate import aggregate
    from mechstudy.circuits.config import AttributionConfig
    from mechstudy.study.phases.inputs import behaviour_of, inputs_of, loaded_model, prompts_of
    from mechstudy.study.phases.prompts import positions_in_order

    with runtime.ranks.helping():
        share(spec, inputs, out, runtime)
    config = AttributionConfig.model_validate(spec)
    behaviour = behaviour_of(inputs)
    model = loaded_model(inputs["model"], runtime, exact=True)
    pairs = prompts_of(inputs, "train")[: config.n_prompts]
    done = [read_json(_kept(out, behaviour, number)) for number in range(len(pairs))]
    metadata = [{k: v for k, v in item["metadata"].items() if k != "mechstudy"} for item in done]
    out.write_json("graphs/graph-metadata.json", {"graphs": metadata})
    scores = [item["score"] for item in done]
    out.write_json(
        "scores.json",
        {"n_prompts": len(pairs)}
        | {"nodes": fmean(s["n_nodes_pruned"] for s in scores), "edges": fmean(s["n_edges_pruned"] for s in scores)}
        | {name: fmean(s[name] for s in scores) for name in _MEANS[2:]}
        | {"conservation_residual_max": max(s["conservation_residual_max"] for s in scores)}
        | {"per_prompt": scores},
    )
    out.write_json(
        "aggregate.json",
        {
            "behaviour": behaviour,
            "target": config.target,
            "n_prompts": len(pairs),
            "positions": [*positions_in_order(pairs), "other"],
            "layers_with_dictionaries": sorted(map(int, inputs_of(inputs, "train"))),
            "n_layers": model.n_layers,
        }
        | aggregate([item["record"] for item in done], config),
    )
    out.write_json("timing.json", {"seconds_per_prompt": {i["score"]["slug"]: i["seconds"] for i in done}})


def share(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """The graphs of one process' prompts, and for each a record that whoever assembles them reads."""
    from mechstudy.circuits.config import AttributionConfig
    from mechstudy.study.phases.inputs import behaviour_of, dictionaries_of, loaded_model, prompts_of

    config = AttributionConfig.model_validate(spec)
    behaviour = behaviour_of(inputs)
    model = loaded_model(inputs["model"], runtime, exact=True)
    dictionaries = dictionaries_of(inputs, runtime)
    mine = runtime.ranks.mine(list(enumerate(prompts_of(inputs, "train")[: config.n_prompts])))
    left = [(number, pair) for number, pair in mine if not _kept(out, behaviour, number).exists()]
    done = len(mine) - len(left)
    with runtime.progress.bar(f"graphs of {behaviour}", len(mine), "prompts", done=done) as bar:
        for number, pair in left:
            found = _one_prompt(model, dictionaries, pair, _slug(behaviour, number), config, out, runtime)
            write_json_atomic(_kept(out, behaviour, number), found, indent=None)
            bar.advance(1, features=found["score"]["n_features_active"])


def _slug(behaviour: str, number: int) -> str:
    return f"{behaviour}-{number:03d}"


def _kept(out: ArtifactWriter, behaviour: str, number: int) -> Path:
    """The record of a prompt's graph, while not all are done."""
    return out.scratch / f"{_slug(behaviour, number)}.json"


def _one_prompt(model, dictionaries, pair, slug: str, config, out: ArtifactWriter, runtime: Runtime) -> dict[str, Any]:
    """The prompt's graph file; returns what the aggregate and the scores need of it."""
    import torch

    from mechstudy.circuits.aggregate import prompt_record
    from mechstudy.circuits.attribute import attribute
    from mechstudy.circuits.graph import prune
    from mechstudy.circuits.live import live_effects
    from mechstudy.circuits.neuronpedia import graph_json

    begun = time.monotonic()
    tokens = torch.tensor(pair.clean_tokens, device=model.device)
    answer, wrong = pair.answer_tokens[0], pair.wrong_tokens[0]
    graph = attribute(model, dictionaries, tokens, config, answer=answer, wrong_answer=wrong, progress=runtime.progress)
    live = live_effects(model, dictionaries, graph, answer, wrong, runtime.checkpointing)
    pruned = prune(graph, config.node_threshold, config.edge_threshold)
    before, after = graph.scores(), graph.scores(pruned)
    score = {
        "slug": slug,
        "prompt": pair.clean,
        "prompt_id": pair.id,
        "n_features_active": graph.index.n_features,
        "n_features_expanded": len(graph.column_R) - len(graph.logits),
        "n_nodes": graph.index.biases + len(graph.logits),
        "n_edges": int((graph.A_RS[:, : graph.index.biases] != 0).sum()),
        "n_nodes_pruned": pruned.n_nodes,
        "n_edges_pruned": pruned.n_edges,
        "replacement": before.replacement,
        "completeness": before.completeness,
        "replacement_pruned": after.replacement,
        "completeness_pruned": after.completeness,
        "conservation_residual_max": graph.conservation_residual_max(),
    }
    extra = {
        "positions": dict(pair.positions),
        "answer": pair.answer,
        "wrong_answer": pair.wrong_answer,
        "logit_difference": float(graph.value_R[0]) if config.target == "logit_difference" else None,
        "scores": score,
    }
    json = graph_json(
        graph, pruned, slug=slug, scan=model.name, prompt=pair.clean,
        token_strings=model.token_strings(pair.clean_tokens), config=config, extra=extra,
    )  # fmt: skip
    out.write_json(f"graphs/{slug}.json", json, indent=None)
    return {
        "score": score,
        "metadata": json["metadata"],
        "record": prompt_record(pair.id, graph, pruned, pair.positions, live),
        "seconds": time.monotonic() - begun,
    }
