"""Phase 5: effects of ablating, resampling, patching and steering the circuit's features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from mechstudy import interventions
from mechstudy.behaviours.sampling import sample
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.core.work import Estimate, Work
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.costs import edges_work, forwards_of
from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.costs import LENGTHS, TYPICAL_POSITIONS, TYPICAL_PROMPT
from mechstudy.study.phases.attribute import AttributePhase, GraphsArtifact, bases_of_graphs
from mechstudy.study.phases.base import Command, Phase, Spec, count
from mechstudy.study.phases.baseline import BaselinePhase
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.phases.prompts import PromptsArtifact, PromptsPhase
from mechstudy.study.phases.train import DictionaryArtifact
from mechstudy.study.study import BehaviourConfig
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan

_BATCHES = "batches.json"  # in the scratch folder


class InterveneSpec(Spec, InterventionConfig):
    """The study's settings; ``sample`` where a file holds more prompts than are used, chosen by ``seed``."""

    optional: ClassVar[frozenset[str]] = frozenset({"sample"})

    sample: Literal["proportional"] | None = None


@dataclass(frozen=True)
class InterveneInputs:
    """The model, the prompts, the dictionaries by layer and the behaviour's graphs."""

    model: ModelArtifact
    prompts: PromptsArtifact
    dictionaries: Mapping[int, DictionaryArtifact]
    graphs: GraphsArtifact


class IntervenePhase(Phase[InterveneSpec, InterveneInputs]):
    """Measures the circuit's effects on prompts that discovery did not use."""

    kind = name = "intervene"
    per = "behaviour"
    title, report_field = "Interventions", "interventions"
    version = 5  # intervals of skewed clusters
    spec, inputs = InterveneSpec, InterveneInputs
    resumes = True
    usage = PhaseProfile(gpu=(0.60, 0.80))
    command = Command(
        "intervene",
        "mechstudy intervene study.yaml --n-samples 50",
        flags=(count("n_samples", "Prompts to use.", "interventions.n_samples"),),
    )

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        if plan.study.no_graphs is not None:
            return
        i = plan.study.interventions
        for b in plan.study.behaviours:
            unit = f"intervene[{b.name}]"
            inputs = [
                *plan.inputs("model", ModelPhase),
                *plan.inputs("prompts", PromptsPhase, behaviour=b.name),
                *plan.dictionaries(),
                *plan.inputs("graphs", AttributePhase, behaviour=b.name),
            ]
            settings = i.canonical() | {"seed": plan.seed(unit, f"draws {i.seed}")}
            tested = min(i.n_samples, i.patching.n_pairs) if "patching" in i.kinds else i.n_samples
            chosen = plan.costs.chosen_from_file(b, train=i.n_discovery, test=tested)
            yield plan.unit(
                self,
                unit,
                InterveneSpec(**settings, sample="proportional" if chosen else None),
                inputs,
                gates=plan.gates(BaselinePhase, b),
                behaviour=b.name,
                estimate=self.estimate(plan, b),
            )

    def estimate(self, plan: StudyPlan, b: BehaviourConfig) -> Estimate:
        """Edited forward passes: of features, of the patching grid, and of edges."""
        i, x, costs = plan.study.interventions, plan.shapes, plan.costs
        n = costs.n_prompts(b)
        samples = min(i.n_samples, n["test"])
        edited, grid = forwards_of(i, samples, x.n_layers, TYPICAL_POSITIONS)
        runs = 3 if b.answer_tokens == "all" else 1  # once more after each answer
        forwards = (edited + grid) * runs
        # A batch starts at the lowest layer of its groups, near the bottom; a cell of the grid half-way, on average.
        tokens = (edited + grid // 2) * runs * TYPICAL_PROMPT
        clean = min(edited * runs * TYPICAL_PROMPT, LENGTHS * costs.batch)  # rows of each batch shape, once
        batches = LENGTHS + tokens // costs.batch
        discovery = (min(i.n_discovery, n["train"]) + 2 * samples) * TYPICAL_PROMPT
        edge_prompts = min(i.edge_prompts, plan.study.attribution.n_prompts)
        work = [
            *costs.forward(tokens + clean, x.n_layers, "float32", batches=batches, logits=forwards),
            *costs.forward(discovery, x.n_layers, "float32", batches=4 * LENGTHS),
            Work("stream", 12.0 * forwards * x.vocab_size * 4),
        ]
        if "edges" in i.kinds and i.n_edges:
            work += edges_work(i, x, edge_prompts, TYPICAL_PROMPT)
        batch = min(tokens, costs.batch)
        working = (
            costs.block_bytes(batch)
            + 4 * batch * x.d_model * min(x.n_layers, 8)
            + 6 * 4 * (batch // TYPICAL_PROMPT) * x.vocab_size
            + 4 * 512 * costs.dictionary().n_features
        )
        held, disk = costs.model("float32"), 20_000 + 400 * forwards
        estimate = costs.of_model(held, disk, working, work, costs.dictionaries(len(plan.layers)))
        return replace(estimate, note=f"about {forwards:,} forward passes")

    def run(self, spec: InterveneSpec, inputs: InterveneInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``results.csv``, ``results_partial_N.csv``, ``edges.csv``, ``dose_response.csv``, ``patching.csv``.

        ``summary.json`` sums them up. Features come from train prompts, effects from test prompts; edges are measured
        on the prompts of their graphs.
        """
        model = inputs.model.load(runtime, exact=True)
        train, test = (inputs.prompts.pairs(split) for split in ("train", "test"))
        aggregate = inputs.graphs.aggregate()
        dictionaries = bases_of_graphs(inputs.dictionaries, [aggregate], runtime, model)
        nodes = [node for node in aggregate["nodes"] if node["type"] == "feature"]
        groups = interventions.feature_groups(
            interventions.recurring_features(nodes, spec),
            n_groups=spec.n_groups,
            group_size=spec.group_size,
            rank_by=spec.rank_by,
            by=spec.by,
        )
        discovery = train
        if spec.sample is not None:
            discovery, test = (sample(pairs, len(pairs), spec.seed) for pairs in (train, test))
        if not all(pair.has_corrupted for pair in (*train, *test)):
            spec = spec.model_copy(update={"kinds": tuple(kind for kind in spec.kinds if kind != "patching")})
        plan = interventions.build_plan(
            model,
            dictionaries,
            discovery,
            test,
            groups,
            {(node["layer"], node["feature"]) for node in nodes},
            spec,
            behaviour=inputs.prompts.behaviour,
            batch_tokens=runtime.batch_tokens,
        )
        batch_tokens = _batch_tokens(out, runtime)
        interventions.run_interventions(
            model, dictionaries, plan, spec, out.path, progress=runtime.progress, batch_tokens=batch_tokens
        )
        if "edges" in spec.kinds and spec.n_edges:
            interventions.measure_edges(
                model,
                dictionaries,
                interventions.edge_checks(aggregate, train),
                spec,
                out.path,
                replace_by=interventions.edges_replaced_by(spec, aggregate.get("contrast")),
                discovery=discovery[: spec.n_discovery],
                elsewhere=aggregate.get("elsewhere", "errors"),
                progress=runtime.progress,
                batch_tokens=batch_tokens,
            )
        out.write_json("summary.json", interventions.summarise(plan, spec, out.path, aggregate.get("contrast")))


def _batch_tokens(out: ArtifactWriter, runtime: Runtime) -> int:
    """The tokens per batch of the process that began the unit.

    Batches determine the order of samples, and saved and new samples must have one order. A batch that no longer fits
    is run in parts.
    """
    file = out.scratch / _BATCHES
    if not file.exists():
        write_json_atomic(file, {"batch_tokens": runtime.batch_tokens})
    return int(read_json(file)["batch_tokens"])
