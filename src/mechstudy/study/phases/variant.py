"""Phase 3, variants: another dictionary of a layer from the same rows, and its agreement with the layer's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mechstudy import dictionaries
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.phases.base import Phase
from mechstudy.study.phases.train import (
    FOLDER,
    DictionaryArtifact,
    TrainInputs,
    TrainPhase,
    TrainSpec,
    make_dictionary,
    training_estimate,
    training_inputs,
    training_spec,
)
from mechstudy.study.study_plan import StudyPlan
from mechstudy.study.unit import Unit

if TYPE_CHECKING:
    from mechstudy.dictionaries.dictionary import Dictionary


class VariantSpec(TrainSpec):
    """A dictionary's spec, and the variant's name."""

    variant: str


@dataclass(frozen=True)
class VariantInputs(TrainInputs):
    """What training reads, and the layer's own dictionary to compare with."""

    own: DictionaryArtifact


class VariantPhase(TrainPhase, Phase[VariantSpec, VariantInputs]):
    """Trains another dictionary of a layer."""

    kind = name = "variant"
    per = "layer"
    title, report_field = "Dictionaries", "variants"
    version = 4
    spec, inputs = VariantSpec, VariantInputs  # type: ignore[assignment]
    calibrated_as = "train"

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        """One unit per layer and variant."""
        for wave, layers in enumerate(plan.layer_groups):
            for layer in layers:
                for variant in plan.study.dictionaries.variants:
                    spec = VariantSpec(**dict(training_spec(plan, layer, variant)), variant=variant.name)
                    yield plan.unit(
                        self,
                        f"variant[{layer}:{variant.name}]",
                        spec,
                        [*training_inputs(plan, wave), *plan.inputs("own", TrainPhase, layer=layer)],
                        layer=layer,
                        variant=variant.name,
                        wave=wave,
                        estimate=training_estimate(plan, spec.architecture),
                    )

    def run(  # type: ignore[override]  # narrower types, same uses
        self, spec: VariantSpec, inputs: VariantInputs, out: ArtifactWriter, runtime: Runtime
    ) -> None:
        """Writes what training writes, and ``agreement.json``."""
        make_dictionary(spec, inputs, out, runtime, spec.variant)
        own, other = (
            cast("Dictionary", dictionaries.load_dictionary(path / FOLDER)) for path in (inputs.own.path, out.path)
        )
        out.write_json("agreement.json", dictionaries.compare(own, other))
