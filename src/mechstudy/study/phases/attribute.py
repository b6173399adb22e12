"""Phase 4: attribution graphs of one behaviour's train prompts, and their aggregate."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mechstudy import circuits, dictionaries
from mechstudy.behaviours.metrics import DIFFERENCE, metric_name
from mechstudy.behaviours.sampling import sample
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.costs import graph_cost
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.core.work import Estimate, Work
from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.costs import TYPICAL_PROMPT
from mechstudy.study.phases.base import Command, Output, Phase, Spec, count
from mechstudy.study.phases.baseline import BaselinePhase
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.phases.prompts import PromptsArtifact, PromptsPhase, positions_in_order
from mechstudy.study.phases.train import DictionaryArtifact, load_all
from mechstudy.study.study import BehaviourConfig
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan

if TYPE_CHECKING:  # plans are made without torch
    from mechstudy.dictionaries.neurons import Basis
    from mechstudy.models.language_model import LanguageModel


class AttributeSpec(Spec, AttributionConfig):
    """The study's settings; ``sample`` seeds the choice of prompts where a file holds more than are explained."""

    optional: ClassVar[frozenset[str]] = AttributionConfig.optional | {"sample"}

    sample: int | None = None

    def prompts(self, pairs: Sequence[PromptPair]) -> list[PromptPair]:
        """The pairs that are explained: the first ones, which are balanced in built-in families, or a sample."""
        if self.sample is not None:
            return sample(pairs, self.n_prompts, self.sample)
        return list(pairs[: self.n_prompts])


@dataclass(frozen=True)
class AttributeInputs:
    """The model, the prompts that are explained, and the dictionaries by layer."""

    model: ModelArtifact
    prompts: PromptsArtifact
    dictionaries: Mapping[int, DictionaryArtifact]


class GraphsArtifact(Output):
    """The graphs of one behaviour, and their aggregate."""

    def aggregate(self) -> dict[str, Any]:
        """``aggregate.json``: the behaviour's graph over all prompts."""
        aggregate: dict[str, Any] = self.read_json("aggregate.json")
        return aggregate


def bases_of_graphs(
    artifacts: Mapping[int, DictionaryArtifact],
    aggregates: Iterable[Mapping[str, Any]],
    runtime: Runtime,
    model: LanguageModel,
) -> dict[int, Basis]:
    """The bases of finished graphs by layer: the dictionaries, and neurons where graphs have them."""
    layers = sorted({layer for aggregate in aggregates for layer in aggregate.get("neuron_layers", ())})
    loaded: Mapping[int, Basis] = load_all(artifacts, runtime, model)
    return dictionaries.with_neurons(model, loaded, layers)


class AttributePhase(Phase[AttributeSpec, AttributeInputs]):
    """Explains every prompt, and aggregates the graphs."""

    kind = name = "attribute"
    per = "behaviour"
    title, report_field = "Graphs", "graphs"
    version = 5  # pairs that heads' scores are made of, by prompt
    spec, inputs = AttributeSpec, AttributeInputs
    resumes = True
    pilots, warms_up = 2, True
    usage = PhaseProfile(gpu=(0.85, 0.95))
    command = Command(
        "attribute",
        "mechstudy attribute study.yaml --n-samples 8",
        flags=(count("n_samples", "Prompts to use.", "attribution.n_prompts"),),
        shared=True,
    )

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        if plan.study.no_graphs is not None:
            return
        a = plan.study.attribution
        settings = a.canonical() | {"contrast": plan.study.contrast.canonical()}
        for b in plan.study.behaviours:
            unit = f"attribute[{b.name}]"
            chosen = plan.costs.chosen_from_file(b, train=a.n_prompts)
            inputs = [
                *plan.inputs("model", ModelPhase),
                *plan.inputs("prompts", PromptsPhase, behaviour=b.name),
                *plan.dictionaries(),
            ]
            yield plan.unit(
                self,
                unit,
                AttributeSpec(**settings, sample=plan.seed(unit, "sample") if chosen else None),
                inputs,
                gates=plan.gates(BaselinePhase, b),
                behaviour=b.name,
                estimate=self.estimate(plan, b),
            )

    def estimate(self, plan: StudyPlan, b: BehaviourConfig) -> Estimate:
        """Rows of the direct-effect matrix of every prompt, and the forward passes around them."""
        a, x, costs = plan.study.attribution, plan.shapes, plan.costs
        n = min(a.n_prompts, costs.n_prompts(b)["train"])
        c, architecture = costs.dictionary(), plan.study.dictionaries.architecture
        graph = graph_cost(
            x,
            n_layers=len(plan.layers),
            d_in=c.d_in,
            n_features=c.n_features,
            k=architecture.k,
            with_skip=architecture.kind == "skip_transcoder",
            max_features=a.max_features,
            tokens=TYPICAL_PROMPT,
            n_written=max(1, -(-sum(one.n_written for one in plan.published) // max(1, len(plan.published)))),
            neurons=a.n_neurons if plan.neuron_layers else 0,
            points=a.contrast.steps if a.explains == "difference" else 0,
        )
        passes = 4 + (0 if a.contrast.method == "first_order" else 3 * a.contrast.steps)  # a backward pass counts 2
        forward = costs.forward(n * TYPICAL_PROMPT * passes, x.n_layers, "float32", batches=4 * n, logits=2 * n)
        work = [
            *forward,
            Work("attribute", n * graph.flops, "float32", x.d_model, n * graph.calls),
            Work("stream", n * graph.moved),
        ]
        # The live gradient keeps every block's tensors.
        working = graph.memory + costs.block_bytes(TYPICAL_PROMPT) * x.n_layers
        held, disk = costs.model("float32"), n * graph.rows * 600
        estimate = costs.of_model(held, disk, working, work, costs.dictionaries(len(plan.layers)))
        return replace(estimate, note=f"{n} prompts x {graph.rows - 1:,} feature rows at most")

    def run(self, spec: AttributeSpec, inputs: AttributeInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``graphs/``, ``aggregate.json``, ``scores.json`` and ``timing.json``.

        An interrupted unit resumes with the next prompt.
        """
        with runtime.group.sharing():
            self.share(spec, inputs, out, runtime)
        behaviour = inputs.prompts.behaviour
        pairs = spec.prompts(inputs.prompts.pairs("train"))
        done = [read_json(_record(out, behaviour, number)) for number in range(len(pairs))]
        model = inputs.model.load(runtime, exact=True)
        bases = _bases(spec, inputs, model, runtime)
        out.write_json("graphs/graph-metadata.json", {"graphs": [item["metadata"] for item in done]})
        out.write_json("scores.json", circuits.scores_of([item["score"] for item in done]))
        aggregate = circuits.aggregate_of(
            [item["record"] for item in done],
            spec,
            behaviour=behaviour,
            positions=[*positions_in_order(pairs), *([circuits.ANSWER] if _continued(spec, pairs) else [])],
            layers=inputs.dictionaries,
            neuron_layers=circuits.neuron_layers(bases),
            elsewhere=spec.elsewhere_of(circuits.has_saes(bases)),
            n_layers=model.n_layers,
            contrast=read_json(about) if (about := _contrast(out)).exists() else None,
        )
        if (metric := metric_name(pairs)) != DIFFERENCE and spec.target == "logit_difference":
            aggregate["metric"] = metric
        out.write_json("aggregate.json", aggregate)
        out.write_json("timing.json", {"seconds_per_prompt": {i["score"]["slug"]: i["seconds"] for i in done}})

    def share(self, spec: AttributeSpec, inputs: AttributeInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes the graphs of this process' prompts, and a record of each for the process that assembles them."""
        behaviour = inputs.prompts.behaviour
        model = inputs.model.load(runtime, exact=True)
        bases = _bases(spec, inputs, model, runtime)
        train = inputs.prompts.pairs("train")
        mine = runtime.group.mine(list(enumerate(spec.prompts(train))))
        checkpointing = runtime.options.checkpointing
        left = [(number, pair) for number, pair in mine if not _record(out, behaviour, number).exists()]
        replacements = None
        if left and spec.target == "logit_difference":
            replacements = circuits.replacements_of(
                model,
                circuits.nodes_of(model, bases),
                spec.prompts(train),
                train,
                spec.contrast,
                batch_tokens=runtime.batch_tokens,
                checkpointing=checkpointing,
            )
            write_json_atomic(_contrast(out), replacements.about)
        done = len(mine) - len(left)
        with runtime.progress.bar(f"graphs of {behaviour}", len(mine), "prompts", done=done) as bar:
            for number, pair in left:
                begun, slug = time.monotonic(), _slug(behaviour, number)
                graph = circuits.explain_prompt(
                    model,
                    bases,
                    pair,
                    slug,
                    spec,
                    replacements=replacements,
                    checkpointing=checkpointing,
                    progress=runtime.progress,
                )
                out.write_json(f"graphs/{slug}.json", graph.json, indent=None)
                seconds = time.monotonic() - begun
                record = {"score": graph.score, "metadata": graph.metadata, "record": graph.record, "seconds": seconds}
                write_json_atomic(_record(out, behaviour, number), record, indent=None)
                bar.advance(1, features=graph.score["n_features_active"])


def _bases(spec: AttributeSpec, inputs: AttributeInputs, model: LanguageModel, runtime: Runtime) -> Mapping[int, Basis]:
    return circuits.chosen_bases(model, load_all(inputs.dictionaries, runtime, model), spec.basis)


def _continued(spec: AttributeSpec, pairs: Sequence[PromptPair]) -> bool:
    """Whether graphs hold tokens of whole answers."""
    return spec.target == "logit_difference" and any(pair.whole_answers for pair in pairs)


def _slug(behaviour: str, number: int) -> str:
    return f"{behaviour}-{number:03d}"


def _record(out: ArtifactWriter, behaviour: str, number: int) -> Path:
    """The record of a prompt's graph, kept until all are done."""
    return out.scratch / f"{_slug(behaviour, number)}.json"


def _contrast(out: ArtifactWriter) -> Path:
    """How effects of replacing nodes are predicted, kept until all graphs are done."""
    return out.scratch / "contrast.json"
