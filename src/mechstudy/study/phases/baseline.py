"""Phase 1: how well the model shows a behaviour: one CSV row per prompt, a summary, and the gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mechstudy import behaviours
from mechstudy.behaviours.schema import SPLITS
from mechstudy.core.work import Estimate
from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.artifacts import Artifact
from mechstudy.study.costs import LENGTHS, TYPICAL_PROMPT
from mechstudy.study.phases.base import Command, Phase
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.phases.prompts import N_SAMPLES, PromptsArtifact, PromptsPhase
from mechstudy.study.study import BaselineConfig, BehaviourConfig
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan

SUMMARY = "summary.json"


class BaselineSpec(BaselineConfig):
    """The gate, and the seed of the bootstrap."""

    seed: int


@dataclass(frozen=True)
class BaselineInputs:
    """The model and the prompts it is scored on."""

    model: ModelArtifact
    prompts: PromptsArtifact


class BaselinePhase(Phase[BaselineSpec, BaselineInputs]):
    """Scores every prompt; its gate stops behaviours that the model does not show."""

    kind = name = "baseline"
    per = "behaviour"
    title, report_field = "Baseline", "baselines"
    version = 3  # intervals of skewed clusters
    spec, inputs = BaselineSpec, BaselineInputs
    usage = PhaseProfile(gpu=(0.60, 0.80))
    command = Command(
        "baseline",
        "mechstudy baseline study.yaml --set baseline.min_accuracy=0.9",
        flags=(N_SAMPLES,),
    )

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        for b in plan.study.behaviours:
            unit = f"baseline[{b.name}]"
            spec = BaselineSpec(**dict(plan.study.baseline), seed=plan.seed(unit, "bootstrap"))
            inputs = [*plan.inputs("model", ModelPhase), *plan.inputs("prompts", PromptsPhase, behaviour=b.name)]
            yield plan.unit(self, unit, spec, inputs, behaviour=b.name, estimate=self.estimate(plan, b))

    def estimate(self, plan: StudyPlan, b: BehaviourConfig) -> Estimate:
        """Forward passes over clean and corrupted prompts, with the logits of the last token."""
        x, costs, n = plan.shapes, plan.costs, plan.costs.total_prompts(b)
        dtype = plan.study.model.dtype
        work = costs.forward(2 * n * TYPICAL_PROMPT, x.n_layers, dtype, batches=4 * LENGTHS, logits=2 * n)
        rows = min(n, costs.batch // TYPICAL_PROMPT)
        working = costs.block_bytes(costs.batch) + 4 * 4 * rows * x.vocab_size
        estimate = costs.of_model(costs.model(dtype), 1000 + n * 160, working, work)
        return replace(estimate, note=f"{n} prompts, clean and corrupted")

    def run(self, spec: BaselineSpec, inputs: BaselineInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``train.csv``, ``test.csv`` and ``summary.json``. Every split must reach ``min_accuracy``."""
        model = inputs.model.load(runtime)
        splits, every = {}, [pair for split in SPLITS for pair in inputs.prompts.pairs(split)]
        for number, split in enumerate(SPLITS):
            scores = behaviours.score_pairs(
                model, inputs.prompts.pairs(split), batch_tokens=runtime.batch_tokens, progress=runtime.progress
            )
            behaviours.write_scores(scores, out.file(f"{split}.csv"))
            splits[split] = behaviours.summarise_scores(
                scores, seed=spec.seed, split=number, n_resamples=spec.bootstrap, min_accuracy=spec.min_accuracy
            )
        passed = all(split["passed"] for split in splits.values())
        gate = {"min_accuracy": spec.min_accuracy, "passed": passed, "on_fail": spec.on_fail}
        behaviour = inputs.prompts.behaviour
        metric = behaviours.metric_name(every)
        stated = {} if metric == behaviours.DIFFERENCE else {"metric": metric}
        out.write_json(SUMMARY, {"behaviour": behaviour, **stated, "gate": gate, "splits": splits})
        if not passed:
            accuracy = ", ".join(f"{s['accuracy']:.0%} on {name}" for name, s in splits.items())
            follows = "this behaviour is not studied further (baseline.on_fail: continue would continue)"
            if spec.on_fail == "continue":
                follows = "continuing, as the study says (baseline.on_fail: continue)"
            asks = f"the gate asks for {spec.min_accuracy:.0%}"
            runtime.progress.log(f"{behaviour}: accuracy {accuracy}, {asks}: {follows}")

    def gate(self, output: Artifact) -> str | None:
        """The reason, unless the behaviour passed or the study continues anyway."""
        summary = output.read_json(SUMMARY)
        verdict = summary.get("gate") or {}
        if verdict.get("passed") is not False or verdict.get("on_fail") == "continue":
            return None
        splits = {name: split.get("accuracy") for name, split in (summary.get("splits") or {}).items()}
        accuracy = ", ".join(f"{value:.0%} on {name}" for name, value in splits.items() if value is not None)
        least = verdict.get("min_accuracy")
        facts = [f"accuracy {accuracy}"] if accuracy else []
        facts += [f"the gate asks for {least:.0%}"] if least is not None else []
        detail = "; ".join(facts)
        return f"{output.unit} did not pass" + (f" ({detail})" if detail else "")
