"""Phase 4b: pages of the features in the graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mechstudy import features
from mechstudy.core.work import Estimate, Work
from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.phases.attribute import AttributePhase, GraphsArtifact, bases_of_graphs
from mechstudy.study.phases.base import Phase
from mechstudy.study.phases.corpus import CorpusArtifact, CorpusPhase
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.phases.train import DictionaryArtifact
from mechstudy.study.study import FeaturesConfig
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan

PAGES = "features.json"
_RANGE_BYTES = 300.0  # read and written per token and feature: some 25 passes over numbers of 4 or 8 bytes


class FeaturesSpec(FeaturesConfig):
    """Numbers of examples that are searched and shown, and the precision of the search."""

    model_dtype: Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class FeaturesInputs:
    """The graphs whose features get a page, and what examples are searched with."""

    model: ModelArtifact
    corpus: CorpusArtifact
    dictionaries: Mapping[int, DictionaryArtifact]
    graphs: Mapping[str, GraphsArtifact]


class FeaturesPhase(Phase[FeaturesSpec, FeaturesInputs]):
    """Finds examples, histograms, labels and logits of the features in the graphs."""

    kind = name = "features"
    title, report_field = "Features", "features"
    version = 3  # 2: labels; 3: histograms, examples of intervals
    spec, inputs = FeaturesSpec, FeaturesInputs
    optional_inputs = True
    usage = PhaseProfile(gpu=(0.60, 0.80))

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        """One unit, of all behaviours."""
        if plan.study.no_graphs is not None:
            return
        spec = FeaturesSpec(**dict(plan.study.features), model_dtype=plan.study.dictionaries.model_dtype)
        inputs = [
            *plan.inputs("model", ModelPhase),
            *plan.inputs("corpus", CorpusPhase),
            *plan.dictionaries(),
            *plan.inputs("graphs", AttributePhase, key="behaviour"),
        ]
        yield plan.unit(self, self.kind, spec, inputs, estimate=self.estimate(plan))

    def estimate(self, plan: StudyPlan) -> Estimate:
        """A search of the corpus, and the documents of the examples once more."""
        f, c, d = plan.study.features, plan.study.corpus, plan.study.dictionaries
        x, costs, layers = plan.shapes, plan.costs, (*plan.layers, *plan.neuron_layers)
        tokens = min(f.documents, c.train_rows) * c.context
        cost = costs.dictionary()
        pages = f.per_behaviour * len(plan.study.behaviours)
        sides = 2 if plan.neuron_layers else 1
        shown = f.examples + sides * features.N_INTERVALS * features.PER_INTERVAL
        again = min(f.documents, pages * shown) * c.context
        batches = -(-(tokens + again) // costs.batch)
        encoding = 2.0 * (tokens + again) * cost.d_in * cost.n_features * len(layers)
        work = [
            *costs.forward(tokens + again, max(layers) + 1, d.model_dtype, batches=batches, context=c.context),
            Work("train", encoding, "float32", cost.d_in),
            Work("stream", 12.0 * (tokens + again) * cost.n_features * len(layers)),
            Work("stream", _RANGE_BYTES * tokens * pages),
            *costs.forward(0, 0, d.model_dtype, batches=0, logits=pages),
        ]
        batch = min(tokens, costs.batch)
        bins = sides * features.BINS
        working = (
            costs.block_bytes(batch)
            + 4 * batch * (x.d_model * len(layers) + 3 * cost.n_features)
            + 2 * 2 * again * pages
            + 2 * 2 * c.context * min(f.documents, features.labelled_documents(c.context, pages)) * pages
            + 4 * 2 * pages * x.vocab_size // max(1, len(layers))
            + 8 * (1 + features.PER_INTERVAL) * bins * pages
            + 8 * (6 * batch + 3 * bins * max(1, batch // c.context)) * pages // max(1, len(layers))
        )
        held = costs.model(d.model_dtype)
        estimate = costs.of_model(
            held, pages * (1200 + shown * (60 + 14 * f.window)), working, work, costs.dictionaries(len(plan.layers))
        )
        return replace(estimate, note=f"{tokens:,} tokens searched, {pages:,} pages at most")

    def run(self, spec: FeaturesSpec, inputs: FeaturesInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``features.json``: examples with per-token activations, histograms, labels, logits, and graphs."""
        aggregates = {name: graphs.aggregate() for name, graphs in inputs.graphs.items()}
        in_graphs = features.features_in_graphs(aggregates, spec.per_behaviour)
        if not in_graphs:
            out.write_json(PAGES, {"features": []})
            return
        rows = inputs.corpus.load().train[: spec.documents].long()
        model = inputs.model.load(runtime, spec.model_dtype)
        pages = features.feature_pages(
            model,
            bases_of_graphs(inputs.dictionaries, aggregates.values(), runtime, model),
            in_graphs,
            rows,
            n_examples=spec.examples,
            window=spec.window,
            top_logits=spec.top_logits,
            batch_tokens=runtime.batch_tokens,
            progress=runtime.progress,
        )
        found = features.claims([features.Label(**page["label"]) for page in pages])
        out.write_json(PAGES, {"features": pages, "labels": found, "rows_searched": int(rows.numel())}, indent=None)
