"""Phase 1: does the model show the behaviour at all? One CSV row per prompt, a summary, and the gate."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``train.csv``, ``test.csv`` and ``summary.json``. The gate asks every split for ``min_accuracy``."""
    import polars

    from mechstudy.behaviours.schema import SPLITS
    from mechstudy.behaviours.scoring import score_pairs
    from mechstudy.study.phases.inputs import behaviour_of, loaded_model, prompts_of

    model = loaded_model(inputs["model"], runtime)
    splits = {}
    for number, split in enumerate(SPLITS):
        scores = score_pairs(
            model, prompts_of(inputs, split), batch_tokens=runtime.batch_tokens, progress=runtime.progress
        )
        polars.DataFrame([score.row() for score in scores]).write_csv(out.file(f"{split}.csv"))
        splits[split] = _summary(scores, spec, number)
    passed = all(split["passed"] for split in splits.values())
    gate = {"min_accuracy": spec["min_accuracy"], "passed": passed, "on_fail": spec["on_fail"]}
    behaviour = behaviour_of(inputs)
    out.write_json("summary.json", {"behaviour": behaviour, "gate": gate, "splits": splits})
    if not passed:
        accuracy = ", ".join(f"{s['accuracy']:.0%} on {name}" for name, s in splits.items())
        runtime.progress.log(
            f"{behaviour}: accuracy {accuracy}, the gate asks for {spec['min_accuracy']:.0%}: "
            + (
                "going on as the study says (baseline.on_fail: continue)"
                if spec["on_fail"] == "continue"
                else "this behaviour is not studied further (baseline.on_fail: continue would go on)"
            )
        )


def _summary(scores, spec: Mapping[str, Any], number: int) -> dict[str, Any]:
    import numpy as np

    from mechstudy.statistics.paired_effects import cluster_bootstrap

    rng = np.random.default_rng([spec["seed"], number])
    groups = [score.group for score in scores]
    accuracy = cluster_bootstrap([float(s.correct) for s in scores], groups, rng, n_resamples=spec["bootstrap"])
    difference = cluster_bootstrap([s.logit_difference for s in scores], groups, rng, n_resamples=spec["bootstrap"])
    share = fmean(float(s.correct) for s in scores)
    return {
        "n": len(scores),
        "accuracy": share,
        "accuracy_ci95": accuracy.ci,
        "mean_logit_difference": fmean(s.logit_difference for s in scores),
        "ci95": difference.ci,
        "median_rank": median(s.rank_answer for s in scores),
        "passed": share >= spec["min_accuracy"],
    }
