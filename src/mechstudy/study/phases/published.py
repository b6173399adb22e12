"""Phase 3 without training: a published dictionary, judged on the study's corpus."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from mechstudy import dictionaries
from mechstudy.core.config import Config
from mechstudy.core.sizes import ITEM_BYTES
from mechstudy.core.work import Estimate
from mechstudy.machine.runtime import Runtime
from mechstudy.models.sites import Site
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.phases.base import Phase
from mechstudy.study.phases.corpus import CorpusArtifact, CorpusPhase
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.phases.train import held_out_rows, load_published, training_estimate
from mechstudy.study.published import Published
from mechstudy.study.run_folder import SOURCE
from mechstudy.study.unit import Unit
from mechstudy.study.units import StudyPlan

if TYPE_CHECKING:
    from mechstudy.dictionaries.clt_layer import CltLayer
    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.models.language_model import LanguageModel


class PublishedSpec(Config):
    """One published dictionary: its address, the checksum of its files, its sites, and how it is judged."""

    optional: ClassVar[frozenset[str]] = frozenset({"listed", "clt_layer"})

    layer: int
    address: str
    path: str
    listed: str | None = None  # the folder of the set whose config.yaml lists it
    clt_layer: int | None = None  # its layer in the cross-layer transcoder that the path holds
    sha256: str
    site_in: str
    site_out: str
    evaluation_rows: int
    evaluation_tokens: int
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class PublishedInputs:
    """The model, and the corpus whose held-out documents judge the dictionary."""

    model: ModelArtifact
    corpus: CorpusArtifact


class PublishedPhase(Phase[PublishedSpec, PublishedInputs]):
    """Judges a published dictionary."""

    kind = name = "published"
    per = "layer"
    title, report_field = "Dictionaries", "dictionaries"
    version = 2  # a JumpReLU without thresholds is called relu
    spec, inputs = PublishedSpec, PublishedInputs
    usage = PhaseProfile(gpu=(0.40, 0.60))

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        """One unit per layer, if the study names published dictionaries."""
        d = plan.study.dictionaries
        for one in plan.published:
            spec = PublishedSpec(
                layer=one.layer,
                address=one.address,
                path=str(one.path),
                listed=None if one.listed is None else str(one.listed),
                clt_layer=one.clt_layer,
                sha256=one.sha256,
                site_in=one.site_in,
                site_out=one.site_out,
                evaluation_rows=d.evaluation_rows,
                evaluation_tokens=d.evaluation_tokens,
                model_dtype=d.model_dtype,
            )
            inputs = [*plan.inputs("model", ModelPhase), *plan.inputs("corpus", CorpusPhase)]
            yield plan.unit(
                self, f"published[{one.layer}]", spec, inputs, layer=one.layer, estimate=self.estimate(plan, one)
            )

    def estimate(self, plan: StudyPlan, one: Published) -> Estimate:
        """Evaluation on held-out documents."""
        estimate = training_estimate(plan, plan.study.dictionaries.architecture)
        shapes = {"width": f"{one.about['d_in']} > {one.about['d_sae']:,} > {one.about['d_out']}"}
        memory = estimate.bytes_in_memory
        if one.clt_layer is not None:
            memory += ITEM_BYTES.get(str(one.about["dtype"]), 4) * one.n_evaluated
        return replace(
            estimate,
            bytes_on_disk=40_000,
            bytes_in_memory=memory,
            note=f"{one.sites}, from {one.address}",
            shapes=shapes,
            payload={},
        )

    def run(self, spec: PublishedSpec, inputs: PublishedInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``evaluation.json``, and ``source.json``: where the dictionary is from and whose it is."""
        source = spec.canonical()
        model, held_out = inputs.model.load(runtime, spec.model_dtype), inputs.corpus.load().held_out
        dictionary = dictionaries.fitted(model, load_published(source, runtime.device))
        sites = Site.parse(dictionary.cfg.site_in), Site.parse(dictionary.cfg.site_out)
        judged = self._judged(spec, dictionary, model, runtime)
        below = tuple(map(Site.parse, judged.inputs_below))
        rows = held_out_rows(model, held_out, sites, spec.evaluation_rows, runtime, below=below)
        record = dictionaries.published_record(
            judged, rows, model, held_out, layer=spec.layer, n_tokens=spec.evaluation_tokens
        )
        if spec.clt_layer is not None:
            record |= {"d_in": dictionary.cfg.d_in, "layers_read": spec.clt_layer + 1}
        for finding in record["health"]:
            runtime.progress.log(f"layer {spec.layer}: {finding['text']}; fix: {finding['fix']}")
        metadata = dictionary.cfg.metadata
        credit = {"made_for": metadata.get("model_name"), "architecture": metadata.get("architecture")}
        out.write_json("evaluation.json", record)
        pinned = ("address", "path", "listed", "clt_layer", "sha256", "site_in", "site_out")
        out.write_json(SOURCE, {name: source[name] for name in pinned if name in source} | credit)

    def _judged(
        self, spec: PublishedSpec, dictionary: Dictionary, model: LanguageModel, runtime: Runtime
    ) -> Dictionary:
        """The dictionary; of a cross-layer transcoder, what it reconstructs at the layer with those below."""
        if spec.clt_layer is None:
            return dictionary
        below = [load_published(_lower_layer(spec, layer), runtime.device) for layer in range(spec.clt_layer)]
        layers = [*(dictionaries.fitted(model, one) for one in below), dictionary]
        return dictionaries.CltOutput([cast("CltLayer", one) for one in layers])

    def changed(self, spec: PublishedSpec, base: Path) -> str | None:
        """The dictionary, if its files are gone or others."""
        same = dictionaries.is_unchanged(spec.canonical())
        return None if same else f"the dictionary of layer {spec.layer} ({spec.address})"


def _lower_layer(spec: PublishedSpec, layer: int) -> dict[str, Any]:
    """The record of a lower layer of the same cross-layer transcoder."""
    site_in, site_out = (re.sub(r"\.\d+(?=\.|$)", f".{layer}", site, count=1) for site in (spec.site_in, spec.site_out))
    return spec.canonical() | {"clt_layer": layer, "site_in": site_in, "site_out": site_out}
