"""Phase 3 without a store: dictionaries of several layers from one streamed pass over the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from mechstudy import activations, dictionaries
from mechstudy.core.config import Config
from mechstudy.core.work import Estimate
from mechstudy.dictionaries.config import DictionaryConfig, Frozen, TrainConfig
from mechstudy.machine.runtime import Runtime
from mechstudy.models.sites import Site, SiteKind
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.phases.base import Output, Phase, Spec
from mechstudy.study.phases.corpus import CorpusArtifact, CorpusPhase
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.study import VariantConfig
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan, span

PASS = "pass.json"


class StreamedVariant(Config):
    """A variant of every layer: its architecture, what is frozen in it, and the seed of each layer."""

    optional: ClassVar[frozenset[str]] = frozenset({"frozen"})

    name: str
    architecture: DictionaryConfig
    seeds: Mapping[str, int]
    frozen: Frozen | None = None


class StreamSpec(Spec):
    """Dictionaries that are trained together from one pass."""

    optional: ClassVar[frozenset[str]] = frozenset({"variants"})

    layers: tuple[int, ...]
    sites: tuple[SiteKind, SiteKind]
    architecture: DictionaryConfig
    training: TrainConfig
    seeds: Mapping[str, int]
    seed: int
    window_rows: int
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"]
    variants: tuple[StreamedVariant, ...] | None = None


@dataclass(frozen=True)
class StreamInputs:
    """The model and the token rows it reads."""

    model: ModelArtifact
    corpus: CorpusArtifact


class StreamArtifact(Output):
    """The dictionaries of one pass."""

    def folder(self, layer: int, variant: str | None) -> Path:
        """Where the pass keeps a dictionary."""
        return self.path / place(layer, variant)

    @property
    def mixing(self) -> float:
        """How well batches mixed documents, 1 for rows of the whole corpus."""
        return float(self.read_json(PASS)["mixing"])


def place(layer: int, variant: str | None) -> str:
    """The folder of a dictionary inside a pass."""
    return f"layers/{layer}" if variant is None else f"variants/{layer}/{variant}"


def init_seed(plan: StudyPlan, layer: int, variant: VariantConfig | None = None) -> int:
    """The seed of a dictionary's initial weights."""
    unit = f"train[{layer}]" if variant is None else f"variant[{layer}:{variant.name}]"
    return plan.seed(unit, f"init {plan.study.dictionaries.training.seed}")


class StreamPhase(Phase[StreamSpec, StreamInputs]):
    """Trains from forward passes as they happen; nothing is stored."""

    kind = name = "stream"
    title = "Streamed"
    version = 11
    spec, inputs = StreamSpec, StreamInputs
    retention, payload = "regenerate", ("layers/*", "variants/*")  # each dictionary is in its own artifact too
    resumes = True
    pilots, warms_up = 2, True
    usage = PhaseProfile(gpu=(0.40, 0.60), batch="dictionaries.training.batch_size")

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        """One unit per group of layers, if the study streams."""
        d = plan.study.dictionaries
        if d.source != "stream":
            return
        for wave, layers in enumerate(plan.layer_groups):
            variants = tuple(
                StreamedVariant(
                    name=variant.name,
                    architecture=variant.architecture or d.architecture,
                    seeds={str(layer): init_seed(plan, layer, variant) for layer in layers},
                    frozen=variant.frozen,
                )
                for variant in d.every_variant
            )
            spec = StreamSpec(
                layers=layers,
                sites=d.sites(),
                architecture=d.architecture,
                training=d.training,
                seeds={str(layer): init_seed(plan, layer) for layer in layers},
                seed=plan.seed(self.kind, "order"),
                window_rows=d.window_rows,
                model_dtype=d.model_dtype,
                variants=variants or None,
            )
            inputs = [*plan.inputs("model", ModelPhase), *plan.inputs("corpus", CorpusPhase)]
            estimate = self.estimate(plan, layers)
            yield plan.unit(self, f"stream[{span(layers)}]", spec, inputs, wave=wave, estimate=estimate)

    def estimate(self, plan: StudyPlan, layers: tuple[int, ...]) -> Estimate:
        """A forward pass over every row trained on, and all trainings side by side."""
        d, c, t = plan.study.dictionaries, plan.study.corpus, plan.study.dictionaries.training
        architectures = [d.architecture, *(variant.architecture or d.architecture for variant in d.every_variant)]
        each = [plan.costs.dictionary(architecture) for architecture in architectures for _ in layers]
        widths = sum(plan.shapes.width(kind) for kind in dict.fromkeys(d.sites())) * len(layers)
        tokens, costs = t.steps * t.batch_size, plan.costs
        batches = -(-tokens // costs.batch)
        forward = costs.forward(tokens, max(layers) + 1, d.model_dtype, batches=batches, context=c.context)
        working = costs.block_bytes(costs.batch) + 2 * d.window_rows * widths + sum(cost.memory for cost in each)
        work = [*forward, *(w for cost in each for w in cost.work)]
        estimate = costs.of_model(costs.model(d.model_dtype), sum(cost.disk for cost in each), working, work)
        return replace(
            estimate,
            note=f"{t.steps:,} steps x {t.batch_size:,} rows, streamed",
            shapes={"window": f"{d.window_rows:,} rows x {widths:,}"},
        )

    def run(self, spec: StreamSpec, inputs: StreamInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``layers/<layer>/dictionary/``, ``variants/<layer>/<name>/dictionary/`` and ``pass.json``, with logs.

        An interrupted pass resumes.
        """
        model = inputs.model.load(runtime, spec.model_dtype)
        sites = [Site(kind, layer) for layer in spec.layers for kind in dict.fromkeys(spec.sites)]
        jobs = []
        for layer in spec.layers:
            site_in, site_out = (str(Site(kind, layer)) for kind in spec.sites)
            own = (None, spec.architecture, spec.seeds, spec.training.frozen)
            variants = ((v.name, v.architecture, v.seeds, v.frozen) for v in spec.variants or ())
            for name, architecture, seeds, frozen in (own, *variants):
                where = place(layer, name)
                recipe = spec.training.model_copy(update={"seed": seeds[str(layer)], "frozen": frozen})
                checkpoint = out.scratch / f"{where.replace('/', '-')}.safetensors"
                jobs.append(
                    dictionaries.Job(where, architecture, recipe, site_in, site_out, out.path / where, checkpoint)
                )
        source = activations.StreamBatches(
            model,
            inputs.corpus.load().train,
            sites,
            jobs[0].recipe.batch_size,
            window_rows=spec.window_rows,
            seed=spec.seed,
            batch_tokens=runtime.batch_tokens,
        )
        runtime.progress.log(f"a batch is {source.mixing():.2f} as mixed as rows of the whole corpus would be")
        findings = {}
        for job in jobs:
            view = dictionaries.View(source, job.site_in, job.site_out)
            findings[job.name] = dictionaries.stream_findings(
                source, view, job.architecture, job.recipe, runtime.progress
            )
        trained = dictionaries.train_many(jobs, source, progress=runtime.progress, device=runtime.device)
        for where, dictionary in trained.items():
            if findings[where]:
                dictionary.metadata["health"] = findings[where] + dictionary.metadata.get("health", [])
            dictionary.save(out.path / where / "dictionary")
        facts = {"mixing": source.mixing(), "window_bytes": source.nbytes, "steps_per_window": source.steps_per_window}
        out.write_json(PASS, facts | {"sink_limits": source.limits})
