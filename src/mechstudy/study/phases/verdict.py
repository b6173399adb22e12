"""Phase 6: the verdict on each behaviour's circuit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from mechstudy import circuits, verdict
from mechstudy.behaviours.sampling import sample
from mechstudy.core.work import Estimate, Work
from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.costs import LENGTHS, TYPICAL_POSITIONS, TYPICAL_PROMPT
from mechstudy.study.phases.attribute import AttributePhase
from mechstudy.study.phases.base import Command, Phase, Spec, count
from mechstudy.study.phases.baseline import BaselinePhase
from mechstudy.study.phases.corpus import CorpusArtifact, CorpusPhase
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.phases.prompts import PromptsArtifact, PromptsPhase
from mechstudy.study.phases.train import DictionaryArtifact, VariantPhase, load_all
from mechstudy.study.study import BehaviourConfig
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan
from mechstudy.verdict.config import VerdictConfig
from mechstudy.verdict.costs import CALLS, DIFFERING, DISTINCT, circuits_run, runs_of_variant

if TYPE_CHECKING:
    from mechstudy.models.language_model import LanguageModel

VERDICT = "verdict.json"


class VerdictSpec(Spec, VerdictConfig):
    """The study's settings, the behaviour, and what the features are; ``sample`` seeds the choice of prompts."""

    optional: ClassVar[frozenset[str]] = frozenset({"sample"})

    behaviour: str
    basis: Literal["dictionaries", "neurons"] = "dictionaries"
    sample: int | None = None


@dataclass(frozen=True)
class VerdictInputs:
    """The model, the prompts of every behaviour, the dictionaries by layer, text, and variants by unit."""

    model: ModelArtifact
    prompts: Mapping[str, PromptsArtifact]
    dictionaries: Mapping[int, DictionaryArtifact]
    corpus: CorpusArtifact
    variants: Mapping[str, DictionaryArtifact]


class VerdictPhase(Phase[VerdictSpec, VerdictInputs]):
    """Judges whether the behaviour's circuit is sufficient, necessary, specific, stable and robust."""

    kind = name = "verdict"
    per = "behaviour"
    title, report_field = "Verdict", "verdicts"
    version = 3  # intervals of skewed clusters
    spec, inputs = VerdictSpec, VerdictInputs
    optional_inputs = True  # prompts of other behaviours may be absent; the gates are what must be there
    usage = PhaseProfile(gpu=(0.60, 0.80))
    command = Command(
        "verdict",
        "mechstudy verdict study.yaml --n-samples 50",
        flags=(count("n_samples", "Test prompts to judge on.", "verdict.n_samples"),),
    )

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        if plan.study.no_graphs is not None:
            return
        for b in plan.study.behaviours:
            if b.answer_tokens == "all":  # keep-only runs compare answers at the next token
                continue
            unit = f"{self.kind}[{b.name}]"
            inputs = [
                *plan.inputs("model", ModelPhase),
                *plan.inputs("prompts", PromptsPhase, key="behaviour"),
                *plan.dictionaries(),
                *plan.inputs("corpus", CorpusPhase),
                *plan.inputs("variants", VariantPhase, key="name"),
            ]
            c = plan.study.verdict
            settings = c.canonical() | {"seed": plan.seed(unit, f"draws {c.seed}")}
            chosen = plan.costs.chosen_from_file(b, train=c.n_discovery, test=c.n_samples)
            spec = VerdictSpec(
                **settings,
                behaviour=b.name,
                basis="dictionaries" if plan.layers else "neurons",
                sample=plan.seed(unit, "sample") if chosen else None,
            )
            gates = (*plan.gates(BaselinePhase, b), *plan.gates(AttributePhase, b))
            yield plan.unit(self, unit, spec, inputs, gates=gates, behaviour=b.name, estimate=self.estimate(plan, b))

    def estimate(self, plan: StudyPlan, b: BehaviourConfig) -> Estimate:
        """Runs with kept circuits, and the backward passes of the effects that rank nodes."""
        c, x, costs = plan.study.verdict, plan.shapes, plan.costs
        n = costs.n_prompts(b)
        train, test = min(c.n_discovery, n["train"]), min(c.n_samples, n["test"])
        runs = circuits_run(c, train, test, len(plan.study.behaviours))
        gradients = round(2 * DIFFERING * train * (2 * c.steps + 2))  # weights have none: backward is as forward
        variants = len(plan.study.dictionaries.every_variant) if plan.layers else 0
        runs += variants * runs_of_variant(c, train, test)
        gradients += variants * round(2 * train * DIFFERING * c.steps)
        passes = runs + gradients
        tokens = passes * TYPICAL_PROMPT
        layers = plan.layers or plan.neuron_layers
        cost = costs.dictionary()
        encoding = 4.0 * tokens * cost.d_in * cost.n_features * len(layers)
        work = [
            *costs.forward(tokens, x.n_layers, "float32", batches=LENGTHS + tokens // costs.batch, logits=passes),
            Work("stream", CALLS * LENGTHS * 4.0 * x.n_block_parameters),
            Work("forward", encoding, "float32", cost.d_in),
            Work("stream", 12.0 * passes * x.vocab_size * 4),
            Work("stream", 16.0 * tokens * cost.n_features * len(layers)),
        ]
        batch = min(tokens, costs.batch)
        rows = min(batch, TYPICAL_PROMPT * max(train, test) // LENGTHS)  # prompts of one length, recorded and replaced
        kept = train * TYPICAL_PROMPT if train * TYPICAL_PROMPT <= costs.batch else 0
        k = plan.study.dictionaries.architecture.k
        active = min(cost.n_features, DISTINCT * k) if plan.layers else x.d_mlp
        # Features, what they read and write and their error; heads; MLPs of layers without features.
        recorded = len(layers) * (active + 3 * x.d_model) + (2 * x.n_layers - len(layers)) * x.d_model
        working = (
            3 * costs.block_bytes(batch)
            + 4 * min(batch, c.steps * rows) * x.d_model * x.n_layers  # gradients keep every block's input
            + 4 * 4 * kept * recorded  # used by several methods: sites, own values, donors' and differences
            + 4 * 4 * rows * (cost.n_features + 3 * x.d_model) * len(layers)
            + 4 * 2 * TYPICAL_POSITIONS * (cost.n_features + 3 * x.d_model) * len(layers)
            + 6 * 4 * (batch // TYPICAL_PROMPT) * x.vocab_size
        )
        held = costs.model("float32")
        estimate = costs.of_model(held, 400_000, working, work, costs.dictionaries((1 + variants) * len(plan.layers)))
        return replace(estimate, note=f"about {passes:,} forward passes")

    def run(self, spec: VerdictSpec, inputs: VerdictInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``verdict.json``: the verdict, its criteria, and every number behind them."""
        model = inputs.model.load(runtime, exact=True)
        dictionaries = load_all(inputs.dictionaries, runtime, model)
        bases = circuits.chosen_bases(model, dictionaries, spec.basis)
        train, test = (inputs.prompts[spec.behaviour].pairs(split) for split in ("train", "test"))
        if spec.sample is not None:
            train, test = sample(train, spec.n_discovery, spec.sample), sample(test, spec.n_samples, spec.sample)
        tests = {name: made.pairs("test") for name, made in inputs.prompts.items() if name != spec.behaviour}
        others = {
            name: pairs[: spec.n_samples]
            for name, pairs in tests.items()
            if not any(pair.whole_answers for pair in pairs)
        }
        texts = inputs.corpus.load().held_out[: spec.n_texts].tolist()
        found = verdict.verify(
            model,
            bases,
            train,
            test,
            VerdictConfig(**{name: getattr(spec, name) for name in VerdictConfig.model_fields}),
            behaviour=spec.behaviour,
            others=others,
            texts=texts,
            variants=_variants(inputs, runtime, model),
            batch_tokens=runtime.batch_tokens,
            checkpointing=runtime.options.checkpointing,
            progress=runtime.progress,
        )
        out.write_json(VERDICT, found.record)


def _variants(inputs: VerdictInputs, runtime: Runtime, model: LanguageModel) -> dict[str, verdict.Variant]:
    """The variants that every layer has, by name."""
    by_name: dict[str, dict[int, DictionaryArtifact]] = defaultdict(dict)
    for made in inputs.variants.values():
        by_name[made.spec["variant"]][made.spec["layer"]] = made
    return {
        name: verdict.Variant(
            load_all(of_layers, runtime, model),
            frozen=any(made.spec["training"].get("frozen") for made in of_layers.values()),
        )
        for name, of_layers in by_name.items()
        if set(of_layers) == set(inputs.dictionaries)
    }
