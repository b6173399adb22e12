"""Phase 5: what happens when the circuit's features are removed, resampled, patched and steered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter

if TYPE_CHECKING:
    from mechstudy.interventions.config import InterventionConfig

_CUT = "batches.json"  # in the scratch folder


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``results.csv``, ``results_partial_N.csv``, ``edges.csv``, ``dose_response.csv``, ``patching.csv`` and
    ``summary.json``. Features come from train prompts, effects from test prompts; edges are checked where they
    were predicted."""
    from mechstudy.interventions.config import InterventionConfig
    from mechstudy.interventions.edges import edge_checks, measure_edges
    from mechstudy.interventions.features import feature_groups
    from mechstudy.interventions.runner import run_interventions
    from mechstudy.interventions.samples import build_plan
    from mechstudy.interventions.summary import summarise
    from mechstudy.study.phases.inputs import behaviour_of, dictionaries_of, inputs_of, loaded_model, prompts_of

    config = InterventionConfig.model_validate(spec)
    behaviour = behaviour_of(inputs)
    model = loaded_model(inputs["model"], runtime, exact=True)
    dictionaries = dictionaries_of(inputs, runtime)
    train, test = (prompts_of(inputs, split) for split in ("train", "test"))
    [graphs] = inputs_of(inputs, "attribute").values()
    aggregate = graphs.read_json("aggregate.json")
    nodes = [node for node in aggregate["nodes"] if node["type"] == "feature"]
    plan = build_plan(
        model,
        dictionaries,
        train,
        test,
        feature_groups(
            recurring(nodes, config), n_groups=config.n_groups, group_size=config.group_size, rank_by=config.rank_by
        ),
        {(node["layer"], node["feature"]) for node in nodes},
        config,
        behaviour=behaviour,
        batch_tokens=runtime.batch_tokens,
    )
    how: dict[str, Any] = {"progress": runtime.progress, "batch_tokens": _cut(out, runtime)}
    run_interventions(model, dictionaries, plan, config, out.path, **how)
    if "edges" in config.kinds and config.n_edges:
        measure_edges(model, dictionaries, edge_checks(aggregate, train), config, out.path, **how)
    out.write_json("summary.json", summarise(plan, config, out.path))


def _cut(out: ArtifactWriter, runtime: Runtime) -> int:
    """The tokens per batch that samples are ordered by: those of the process that began, or what is saved would be of
    other samples than what follows. Where fewer fit by now, batches are run in parts."""
    file = out.scratch / _CUT
    if not file.exists():
        write_json_atomic(file, {"batch_tokens": runtime.batch_tokens})
    return int(read_json(file)["batch_tokens"])


def recurring(nodes: Sequence[Mapping[str, Any]], config: InterventionConfig) -> list[Mapping[str, Any]]:
    """The features present on enough prompts; all of them where those would not fill one group."""
    found = [node for node in nodes if node["presence"] >= config.min_presence]
    return found if sum(node["position"] != "other" for node in found) >= config.group_size else list(nodes)
