"""The DAG of a study: which units there are and what each needs. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechstudy.behaviours.user import Outline
from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import seed_for
from mechstudy.dictionaries.config import DictionaryConfig
from mechstudy.models.shapes import ModelShapes
from mechstudy.models.sites import parse_layers
from mechstudy.study.estimates import Estimator
from mechstudy.study.fingerprints import corpus_fingerprint, file_fingerprint
from mechstudy.study.retention import rule_of
from mechstudy.study.study import BehaviourConfig, Study, VariantConfig
from mechstudy.study.unit import Unit

# Bump a phase's version when the same spec would write different bytes.
VERSIONS = {
    "model": 1,
    "prompts": 1,
    "baseline": 1,
    "corpus": 1,
    "capture": 2,  # sums by chunk, checksums
    "stream": 11,
    "train": 11,
    "variant": 4,
    "attribute": 2,  # live effects
    "features": 1,
    "intervene": 2,  # edits of one place are added in a fixed order
    "report": 4,  # what failed or waits
}


def build_units(
    study: Study, shapes: ModelShapes, fingerprint: str, base: Path, given: Mapping[str, Outline] | None = None
) -> list[Unit]:
    """Every unit of the study, inputs before those who need them; no graphs where it can have none (`no_graphs`).

    Args:
        shapes: of the study's model.
        fingerprint: of the model's files, so that other weights under the same name are another study.
        base: the study file's folder; relative paths in the study start there.
        given: of the behaviours' own files (`preflight.outlines`); only estimates use it.
    """
    assert study.dictionaries.source != "auto", "execution.source_choice comes first"
    return _Builder(study, shapes, fingerprint, base, given or {}).build()


class _Builder:
    def __init__(
        self, study: Study, shapes: ModelShapes, fingerprint: str, base: Path, given: Mapping[str, Outline]
    ) -> None:
        self.study, self.shapes, self.fingerprint, self.base = study, shapes, fingerprint, base
        self.estimates = Estimator(study, shapes, given)
        self.layers = _layers(study.dictionaries.layers, shapes, "dictionaries.layers")
        self.units: list[Unit] = []

    def build(self) -> list[Unit]:
        self._model()
        for behaviour in self.study.behaviours:
            self._prompts_and_baseline(behaviour)
        self._corpus()
        for behaviour in self.study.behaviours:
            self._capture_prompts(behaviour)
        size = self.study.dictionaries.layers_per_pass
        for start in range(0, len(self.layers), size):
            layers = self.layers[start : start + size]
            stored = self.study.dictionaries.source == "store"
            made = self._capture_corpus(layers) if stored else self._stream(layers)
            for layer in layers:
                own = self._train(layer, made)
                for variant in self.study.dictionaries.variants:
                    self._variant(layer, variant, made, own)
        if self.study.no_graphs is None:
            self._graphs()
        self._report()
        return self.units

    def _graphs(self) -> None:
        for behaviour in self.study.behaviours:
            self._attribute(behaviour)
        self._features()
        for behaviour in self.study.behaviours:
            self._intervene(behaviour)

    # ------------------------------------------------------------------ helpers

    def _add(self, name: str, phase: str, spec: dict[str, Any], inputs: Sequence[str], **kw: Any) -> str:
        entry = kw.pop("entry", f"mechstudy.study.phases.{phase}:run")
        rule = rule_of(phase, spec, self.study.storage.retain)
        kept: dict[str, Any] = {"retention": rule.retention, "discard_patterns": rule.payload}
        self.units.append(Unit(name, phase, VERSIONS[phase], spec, {i: i for i in inputs}, entry, **kept, **kw))
        return name

    def _names(self, phase: str) -> list[str]:
        return [u.name for u in self.units if u.phase == phase]

    # -------------------------------------------------------------------- units

    def _model(self) -> None:
        m = self.study.model
        spec = {
            "source": m.source,
            "dtype": m.dtype,
            "trust_remote_code": m.trust_remote_code,
            "chat": m.chat,
            "fingerprint": self.fingerprint,
        } | ({"chat_instruction": m.chat_instruction} if m.chat else {})
        self._add("model", "model", spec, [], estimate=self.estimates.model())

    def _prompts_and_baseline(self, b: BehaviourConfig) -> None:
        spec: dict[str, Any] = {"behaviour": b.name, "n": {"train": b.n_train, "test": b.n_test}}
        spec["seed"] = seed_for(self.study.seed, f"prompts[{b.name}]", "prompts")
        if b.file is not None:
            spec |= {"file": b.file, "sha256": file_fingerprint(self.base / b.file)}
        prompts = self._add(
            f"prompts[{b.name}]", "prompts", spec, ["model"], estimate=self.estimates.prompts(b)
        )  # fmt: skip
        baseline = self.study.baseline.canonical() | {
            "seed": seed_for(self.study.seed, f"baseline[{b.name}]", "bootstrap")
        }
        self._add(
            f"baseline[{b.name}]", "baseline", baseline, ["model", prompts], estimate=self.estimates.baseline(b)
        )  # fmt: skip

    def _corpus(self) -> None:
        c = self.study.corpus
        spec = c.canonical() | {"fingerprint": corpus_fingerprint(c, self.base)}
        spec["seed"] = seed_for(self.study.seed, "corpus", f"corpus {c.seed}")
        self._add("corpus", "corpus", spec, ["model"], estimate=self.estimates.corpus())

    def _capture_prompts(self, b: BehaviourConfig) -> None:
        c = self.study.capture
        layers = _layers(c.layers, self.shapes, "capture.layers")
        self._add(
            f"capture[{b.name}]", "capture", c.canonical() | {"layers": list(layers)},
            ["model", f"prompts[{b.name}]"], gates=(f"baseline[{b.name}]",),
            estimate=self.estimates.capture_prompts(b, layers), entry="mechstudy.study.phases.capture:run_prompts",
        )  # fmt: skip

    def _capture_corpus(self, layers: Sequence[int]) -> str:
        d = self.study.dictionaries
        spec = {
            "layers": list(layers),
            "sites": list(dict.fromkeys(d.sites())),
            "dtype": d.store_dtype,
            "model_dtype": d.model_dtype,
            "seed": seed_for(self.study.seed, "capture[corpus]", "permutation"),
        }
        return self._add(
            f"capture[corpus:{_span(layers)}]", "capture", spec, ["model", "corpus"],
            estimate=self.estimates.capture_corpus(layers), entry="mechstudy.study.phases.capture:run_corpus",
        )  # fmt: skip

    def _stream(self, layers: Sequence[int]) -> str:
        d = self.study.dictionaries
        spec = {
            "layers": list(layers),
            "sites": list(d.sites()),
            "architecture": d.architecture.canonical(),
            "training": d.training.canonical(),
            "seeds": {str(layer): self._init_seed(layer) for layer in layers},
            "seed": seed_for(self.study.seed, "stream", "order"),
            "window_rows": d.window_rows,
            "model_dtype": d.model_dtype,
        }
        if d.variants:
            spec["variants"] = [
                {
                    "name": variant.name,
                    "architecture": (variant.architecture or d.architecture).canonical(),
                    "seeds": {str(layer): self._init_seed(layer, variant) for layer in layers},
                }
                for variant in d.variants
            ]
        name = f"stream[{_span(layers)}]"
        return self._add(name, "stream", spec, ["model", "corpus"], estimate=self.estimates.stream(layers))

    def _init_seed(self, layer: int, variant: VariantConfig | None = None) -> int:
        unit = f"train[{layer}]" if variant is None else f"variant[{layer}:{variant.name}]"
        return seed_for(self.study.seed, unit, f"init {self.study.dictionaries.training.seed}")

    def _train(self, layer: int, made: str) -> str:
        spec, how = self._training(layer, self.study.dictionaries.architecture, None)
        return self._add(f"train[{layer}]", "train", spec, ["model", "corpus", made], **how)

    def _variant(self, layer: int, variant: VariantConfig, made: str, own: str) -> None:
        spec, how = self._training(layer, variant.architecture or self.study.dictionaries.architecture, variant)
        spec["variant"] = variant.name
        how["entry"] = f"mechstudy.study.phases.variant:{'take' if 'entry' in how else 'run'}"
        name = f"variant[{layer}:{variant.name}]"
        self._add(name, "variant", spec, ["model", "corpus", made, own], **how)

    def _training(
        self, layer: int, architecture: DictionaryConfig, variant: VariantConfig | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Spec of one dictionary's unit, and what it costs and runs."""
        d = self.study.dictionaries
        site_in, site_out = d.sites()
        spec = {
            "layer": layer,
            "site_in": site_in,
            "site_out": site_out,
            "architecture": architecture.canonical(),
            "training": d.training.canonical() | {"seed": self._init_seed(layer, variant)},
            "evaluation_rows": d.evaluation_rows,
            "evaluation_tokens": d.evaluation_tokens,
            "model_dtype": d.model_dtype,
        }
        how: dict[str, Any] = {"estimate": self.estimates.train(architecture)}
        if d.source == "stream":
            how["entry"] = "mechstudy.study.phases.stream:take"
        return spec, how

    def _attribute(self, b: BehaviourConfig) -> None:
        inputs = ["model", f"prompts[{b.name}]", *self._names("train")]
        self._add(
            f"attribute[{b.name}]", "attribute", self.study.attribution.canonical(), inputs,
            gates=(f"baseline[{b.name}]",), estimate=self.estimates.attribute(b),
        )  # fmt: skip

    def _features(self) -> None:
        spec = self.study.features.canonical() | {"model_dtype": self.study.dictionaries.model_dtype}
        inputs = ["model", "corpus", *self._names("train"), *self._names("attribute")]
        self._add("features", "features", spec, inputs, optional_inputs=True, estimate=self.estimates.features())

    def _intervene(self, b: BehaviourConfig) -> None:
        i = self.study.interventions
        spec = i.canonical() | {"seed": seed_for(self.study.seed, f"intervene[{b.name}]", f"draws {i.seed}")}
        inputs = ["model", f"prompts[{b.name}]", *self._names("train"), f"attribute[{b.name}]"]
        self._add(
            f"intervene[{b.name}]", "intervene", spec, inputs, gates=(f"baseline[{b.name}]",),
            estimate=self.estimates.intervene(b),
        )  # fmt: skip

    def _report(self) -> None:
        inputs = [u.name for u in self.units]
        study = self.study.canonical()
        for how in ("compute", "storage"):
            study.pop(how)
        self._add(
            "report", "report", {"study": study}, inputs, optional_inputs=True, reads_payload=False,
            estimate=self.estimates.report(),
        )  # fmt: skip


def _layers(spec: Any, shapes: ModelShapes, where: str) -> tuple[int, ...]:
    try:
        return parse_layers(spec, shapes.n_layers)
    except MechstudyError as error:
        raise MechstudyError(error.what, where=where, facts=error.facts, fix=error.fix) from None


def _span(layers: Sequence[int]) -> str:
    """``0-9`` for a run of layers, ``2,5,8`` otherwise."""
    first, last = layers[0], layers[-1]
    if first == last:
        return str(first)
    return f"{first}-{last}" if last - first + 1 == len(layers) else ",".join(map(str, layers))
