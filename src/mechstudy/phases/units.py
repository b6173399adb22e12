"""The DAG of a study: which units there are, what each needs, and what it will take. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechstudy.activations.config import store_bytes
from mechstudy.behaviours.user import Outline
from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import seed_for
from mechstudy.dictionaries.config import DictionaryConfig
from mechstudy.interventions.config import InterventionConfig
from mechstudy.models.shapes import ModelShapes
from mechstudy.models.sites import parse_layers
from mechstudy.phases.fingerprints import corpus_fingerprint, file_fingerprint
from mechstudy.phases.preflight import n_prompts
from mechstudy.phases.study import BehaviourConfig, Study, VariantConfig
from mechstudy.phases.unit import Estimate, Unit

# Bump a phase's version when the same spec would write different bytes.
VERSIONS = {
    "model": 1,
    "prompts": 1,
    "baseline": 1,
    "corpus": 1,
    "capture": 2,  # sums by chunk, checksums
    "stream": 8,
    "train": 8,
    "variant": 1,
    "attribute": 2,  # live effects
    "features": 1,
    "intervene": 2,  # edits of one place are added in a fixed order
    "report": 2,
}
_TYPICAL_POSITIONS = 4  # named ones of a prompt
_TYPICAL_PROMPT = 16  # tokens; only estimates of time use it


def build_units(
    study: Study, shapes: ModelShapes, fingerprint: str, base: Path, given: Mapping[str, Outline] | None = None
) -> list[Unit]:
    """Every unit of the study, inputs before those who need them.

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
        self.given = given
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
        for behaviour in self.study.behaviours:
            self._attribute(behaviour.name)
        self._features()
        for behaviour in self.study.behaviours:
            self._intervene(behaviour.name)
        self._report()
        return self.units

    # ------------------------------------------------------------------ helpers

    def _add(self, name: str, phase: str, spec: dict[str, Any], inputs: Sequence[str], **kw: Any) -> str:
        entry = kw.pop("entry", f"mechstudy.phases.{phase}:run")
        self.units.append(Unit(name, phase, VERSIONS[phase], spec, {i: i for i in inputs}, entry, **kw))
        return name

    def _names(self, phase: str) -> list[str]:
        return [u.name for u in self.units if u.phase == phase]

    def _forward_flops(self, tokens: float, layers: int | None = None) -> float:
        x = self.shapes
        blocks = (x.n_parameters - x.n_embedding_parameters) * ((layers or x.n_layers) / x.n_layers)
        return 2.0 * tokens * blocks

    @property
    def _weights_bytes(self) -> int:
        return self.shapes.n_parameters * 4

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
        x = self.shapes
        facts = {"layers": str(x.n_layers), "width": str(x.d_model), "mlp": str(x.d_mlp)}
        estimate = Estimate(bytes_in_memory=self._weights_bytes, note="load and validate", shapes=facts)
        self._add("model", "model", spec, [], estimate=estimate)

    def _prompts_and_baseline(self, b: BehaviourConfig) -> None:
        spec: dict[str, Any] = {"behaviour": b.name, "n": {"train": b.n_train, "test": b.n_test}}
        spec["seed"] = seed_for(self.study.seed, f"prompts[{b.name}]", "prompts")
        if b.file is not None:
            spec |= {"file": b.file, "sha256": file_fingerprint(self.base / b.file)}
        n = sum(n_prompts(b, self.given).values())
        prompts = self._add(
            f"prompts[{b.name}]", "prompts", spec, ["model"],
            estimate=Estimate(bytes_on_disk=n * 900, note=f"{n} contrastive pairs"),
        )  # fmt: skip
        tokens = 2.0 * n * _TYPICAL_PROMPT
        unembed = 2.0 * n * self.shapes.vocab_size * self.shapes.d_model
        estimate = Estimate(n * 120, self._weights_bytes, self._forward_flops(tokens) + unembed)
        baseline = self.study.baseline.canonical() | {
            "seed": seed_for(self.study.seed, f"baseline[{b.name}]", "bootstrap")
        }
        self._add(f"baseline[{b.name}]", "baseline", baseline, ["model", prompts], estimate=estimate)

    def _corpus(self) -> None:
        c = self.study.corpus
        spec = c.canonical() | {"fingerprint": corpus_fingerprint(c, self.base)}
        spec["seed"] = seed_for(self.study.seed, "corpus", f"corpus {c.seed}")
        rows = c.n_rows
        estimate = Estimate(
            bytes_on_disk=rows * c.context * 4, exact=True, shapes={"tokens": f"{rows:,} x {c.context}"}
        )
        self._add("corpus", "corpus", spec, ["model"], estimate=estimate)

    def _capture_prompts(self, b: BehaviourConfig) -> None:
        c = self.study.capture
        layers = _layers(c.layers, self.shapes, "capture.layers")
        versions = len(c.versions)
        n = sum(n_prompts(b, self.given)[s] for s in c.splits) * versions
        widths = [self._width(kind) for kind in c.sites for _ in layers]
        rows = n * c.positions.count(_TYPICAL_PROMPT)
        estimate = Estimate(
            store_bytes(rows, widths, c.dtype),
            self._weights_bytes,
            self._forward_flops(n * _TYPICAL_PROMPT, max(layers) + 1),
            note=f"{n} prompts x {c.positions.value} x {len(layers)} layers",
            shapes={"rows": f"{rows:,} x {len(widths)} sites"},
        )
        self._add(
            f"capture[{b.name}]", "capture", c.canonical() | {"layers": list(layers)},
            ["model", f"prompts[{b.name}]"], gates=(f"baseline[{b.name}]",), estimate=estimate,
            entry="mechstudy.phases.capture:run_prompts",
        )  # fmt: skip

    def _width(self, kind: str) -> int:
        return self.shapes.d_mlp if kind == "mlp_act" else self.shapes.d_model

    def _capture_corpus(self, layers: Sequence[int]) -> str:
        d, c = self.study.dictionaries, self.study.corpus
        site_in, site_out = d.sites()
        kinds = [site_in] if site_in == site_out else [site_in, site_out]
        rows = c.n_rows * c.context
        widths = [self._width(kind) for kind in kinds for _ in layers]
        name = f"capture[corpus:{_span(layers)}]"
        spec = {
            "layers": list(layers),
            "sites": kinds,
            "dtype": d.store_dtype,
            "model_dtype": d.model_dtype,
            "seed": seed_for(self.study.seed, "capture[corpus]", "permutation"),
        }
        estimate = Estimate(
            store_bytes(rows, widths, d.store_dtype),
            self._weights_bytes // (1 if d.model_dtype in ("float32", "auto") else 2),
            self._forward_flops(rows, max(layers) + 1),
            exact=True,
            shapes={"rows": f"{rows:,} x {len(widths)} sites x {widths[0]}"},
        )
        return self._add(
            name, "capture", spec, ["model", "corpus"], estimate=estimate,
            entry="mechstudy.phases.capture:run_corpus", retention=self.study.storage.activations,
            discard_patterns=("*.bin",),
        )  # fmt: skip

    def _stream(self, layers: Sequence[int]) -> str:
        d = self.study.dictionaries
        sites, t = d.sites(), d.training
        spec = {
            "layers": list(layers),
            "sites": list(sites),
            "architecture": d.architecture.canonical(),
            "training": t.canonical(),
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
        architectures = [d.architecture, *(variant.architecture or d.architecture for variant in d.variants)]
        each = [self._training_cost(architecture) for architecture in architectures for _ in layers]
        widths = sum(self._width(kind) for kind in dict.fromkeys(sites)) * len(layers)
        tokens = t.steps * t.batch_size
        estimate = Estimate(
            sum(cost.bytes_on_disk for cost in each),
            self._weights_bytes + 2 * d.window_rows * widths + sum(cost.bytes_in_memory for cost in each),
            self._forward_flops(tokens, max(layers) + 1) + sum(cost.flops for cost in each),
            note=f"{t.steps:,} steps x {t.batch_size:,} rows, streamed",
            shapes={"window": f"{d.window_rows:,} rows x {widths:,}"},
        )
        return self._add(f"stream[{_span(layers)}]", "stream", spec, ["model", "corpus"], estimate=estimate)

    def _init_seed(self, layer: int, variant: VariantConfig | None = None) -> int:
        unit = f"train[{layer}]" if variant is None else f"variant[{layer}:{variant.name}]"
        return seed_for(self.study.seed, unit, f"init {self.study.dictionaries.training.seed}")

    def _train(self, layer: int, made: str) -> str:
        spec, how = self._training(layer, self.study.dictionaries.architecture, None)
        return self._add(f"train[{layer}]", "train", spec, ["model", "corpus", made], **how)

    def _variant(self, layer: int, variant: VariantConfig, made: str, own: str) -> None:
        spec, how = self._training(layer, variant.architecture or self.study.dictionaries.architecture, variant)
        spec["variant"] = variant.name
        how["entry"] = f"mechstudy.phases.variant:{'take' if 'entry' in how else 'run'}"
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
        cost = self._training_cost(architecture)
        how: dict[str, Any] = {"estimate": cost}
        if d.source == "stream":
            how = {
                "estimate": Estimate(cost.bytes_on_disk, self._weights_bytes),
                "entry": "mechstudy.phases.stream:take",
            }
        return spec, how

    def _training_cost(self, architecture: DictionaryConfig) -> Estimate:
        """Of training one layer's dictionary from rows that are there."""
        d = self.study.dictionaries
        width_in, width_out = (self._width(kind) for kind in d.sites())
        n_features = _n_features(architecture, width_in)
        t = d.training
        weights = 4 * (n_features * (width_in + width_out + 1) + width_out)
        if architecture.kind == "skip_transcoder":
            weights += 4 * width_in * width_out
        step = 6.0 * t.batch_size * n_features * width_in
        return Estimate(
            weights,
            4 * weights + 8 * t.batch_size * (n_features + width_in + width_out),
            t.steps * step,
            note=f"{t.steps:,} steps x {t.batch_size:,} rows",
            shapes={"width": f"{width_in} > {n_features:,} (k {architecture.k}) > {width_out}"},
        )

    def _attribute(self, b: str) -> None:
        a = self.study.attribution
        rows = a.n_prompts * a.max_features
        x = self.shapes
        per_token = 4.0 * x.n_layers * x.d_model * x.head_dim * (x.n_heads + x.n_kv_heads) / 2
        estimate = Estimate(
            bytes_in_memory=2 * self._weights_bytes,
            flops=rows * _TYPICAL_PROMPT * per_token,
            note=f"{a.n_prompts} prompts x {a.max_features:,} feature rows at most",
        )
        self._add(
            f"attribute[{b}]", "attribute", a.canonical(), ["model", f"prompts[{b}]", *self._names("train")],
            gates=(f"baseline[{b}]",), estimate=estimate,
        )  # fmt: skip

    def _features(self) -> None:
        f, c = self.study.features, self.study.corpus
        spec = f.canonical() | {"model_dtype": self.study.dictionaries.model_dtype}
        tokens = f.documents * c.context
        estimate = Estimate(
            bytes_in_memory=self._weights_bytes, flops=self._forward_flops(tokens), note=f"{tokens:,} tokens searched"
        )
        inputs = ["model", "corpus", *self._names("train"), *self._names("attribute")]
        self._add("features", "features", spec, inputs, optional_inputs=True, estimate=estimate)

    def _intervene(self, b: str) -> None:
        i = self.study.interventions
        spec = i.canonical() | {"seed": seed_for(self.study.seed, f"intervene[{b}]", f"draws {i.seed}")}
        forwards = _forwards(i)
        if "patching" in i.kinds:
            layers = _layers(i.patching.layers, self.shapes, "interventions.patching.layers")
            forwards += i.patching.n_pairs * len(layers) * _TYPICAL_POSITIONS
        estimate = Estimate(
            forwards * 120,
            2 * self._weights_bytes,
            self._forward_flops(forwards * _TYPICAL_PROMPT),
            note=f"about {forwards:,} forward passes",
        )
        inputs = ["model", f"prompts[{b}]", *self._names("train"), f"attribute[{b}]"]
        self._add(f"intervene[{b}]", "intervene", spec, inputs, gates=(f"baseline[{b}]",), estimate=estimate)

    def _report(self) -> None:
        inputs = [u.name for u in self.units]
        study = self.study.canonical()
        study.pop("compute")
        study["storage"].pop("quota")
        self._add("report", "report", {"study": study}, inputs, optional_inputs=True)


def _n_features(architecture: DictionaryConfig, d_in: int) -> int:
    try:
        return architecture.width(d_in)
    except MechstudyError as error:
        where = f"dictionaries.architecture.{error.where}"
        raise MechstudyError(error.what, where=where, facts=error.facts, fix=error.fix) from None


def _forwards(i: InterventionConfig) -> int:
    """Edited forward passes: every policy on each group and its controls, the sham, steering, and the grid."""
    policies = len(i.ablations) * ("ablation" in i.kinds) + i.resample_draws * ("resampling" in i.kinds)
    policies += "patching" in i.kinds
    per_pair = policies * i.n_groups * (1 + i.n_controls) + 1
    if "steering" in i.kinds:
        per_pair += len(i.alphas) * (2 + i.n_controls)
    return i.n_samples * per_pair


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
