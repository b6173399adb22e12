"""Phase 3: one layer's dictionary and its variants, from stored rows or a streamed pass, evaluated."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mechstudy import activations, dictionaries, features
from mechstudy.core.config import Config
from mechstudy.core.work import Estimate, Work
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.machine.runtime import Runtime
from mechstudy.models.sites import Site, SiteKind
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.phases.base import Command, Output, Phase, count
from mechstudy.study.phases.capture import CaptureArtifact, CorpusCapturePhase
from mechstudy.study.phases.corpus import CorpusArtifact, CorpusPhase
from mechstudy.study.phases.model import ModelArtifact, ModelPhase
from mechstudy.study.phases.stream import StreamArtifact, StreamPhase, init_seed
from mechstudy.study.run_folder import SOURCE
from mechstudy.study.study import VariantConfig
from mechstudy.study.unit import Input, Unit
from mechstudy.study.units import StudyPlan

if TYPE_CHECKING:
    from torch import Tensor

    from mechstudy.activations.store import Store
    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.models.language_model import LanguageModel

CHECKPOINT = "checkpoint.safetensors"
FOLDER = "dictionary"
_LABELLED = 64  # features of a control, and as many of the layer's own
_LABEL_TOKENS = 16_384  # held-out tokens that labels are made from and scored on
_EVALUATED_AT_ONCE = 1024  # tokens


class TrainSpec(Config):
    """One dictionary: its sites, architecture, recipe and evaluation."""

    layer: int
    site_in: SiteKind
    site_out: SiteKind
    architecture: DictionaryConfig
    training: TrainConfig
    evaluation_rows: int
    evaluation_tokens: int
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"]

    @property
    def sites(self) -> tuple[Site, Site]:
        """The sites that the dictionary reads and writes."""
        return Site(self.site_in, self.layer), Site(self.site_out, self.layer)


class VariantSpec(TrainSpec):
    """A dictionary's spec, the variant's name, and how many features of a control and of the layer's own get labels."""

    variant: str
    labelled: int = 0


class DictionaryArtifact(Output):
    """A trained or published dictionary with its evaluation."""

    def load(self, runtime: Runtime, model: LanguageModel) -> Dictionary:
        """The dictionary, which reads a site of the model; kept loaded between units of one process.

        Raises:
            MechstudyError: a published dictionary's files are gone, or not those that were judged.
        """
        key = ("dictionary", self.id, runtime.device)
        if key not in runtime.cache:
            loaded = (
                load_published(self.read_json(SOURCE), runtime.device)
                if SOURCE in self.artifact.manifest["files"]
                else dictionaries.load_dictionary(
                    self.artifact.file(f"{FOLDER}/cfg.json").parent, device=runtime.device
                )
            )
            runtime.cache[key] = dictionaries.fitted(model, cast("Dictionary", loaded))
        dictionary: Dictionary = runtime.cache[key]
        return dictionary


@dataclass(frozen=True)
class TrainInputs:
    """The model, the corpus, and rows: either a store or a streamed pass that has already trained."""

    model: ModelArtifact
    corpus: CorpusArtifact
    capture: CaptureArtifact | None
    stream: StreamArtifact | None


@dataclass(frozen=True)
class VariantInputs(TrainInputs):
    """What training reads, and the layer's own dictionary to compare with."""

    own: DictionaryArtifact


def load_published(source: Mapping[str, Any], device: str) -> Dictionary:
    """The dictionary that ``source.json`` (or a unit's spec) names, at the sites that it names.

    On a CPU its matrices stay in the file where they can, as the plan expects: a set may be larger than memory.
    """
    from mechstudy.dictionaries.lazy import LazyDictionary  # plans are made without torch

    pinned = dictionaries.pinned(source)
    dictionary = dictionaries.load_dictionary(pinned, device=device, lazy=device == "cpu")
    if isinstance(dictionary, LazyDictionary) and not dictionary.in_file:
        dictionary = dictionaries.load_dictionary(pinned, device=device)
    return cast("Dictionary", dictionary)


def load_all(
    artifacts: Mapping[int, DictionaryArtifact], runtime: Runtime, model: LanguageModel
) -> dict[int, Dictionary]:
    """Dictionaries by layer, in order."""
    return {layer: artifacts[layer].load(runtime, model) for layer in sorted(artifacts)}


def training_inputs(plan: StudyPlan, wave: int) -> list[Input]:
    """The inputs of a dictionary whose layer is in this wave."""
    return [
        *plan.inputs("model", ModelPhase),
        *plan.inputs("corpus", CorpusPhase),
        *plan.inputs("capture", CorpusCapturePhase, wave=wave),
        *plan.inputs("stream", StreamPhase, wave=wave),
    ]


def training_spec(plan: StudyPlan, layer: int, variant: VariantConfig | None = None) -> TrainSpec:
    """The spec of a layer's dictionary, or of a variant of it."""
    d = plan.study.dictionaries
    site_in, site_out = d.sites()
    frozen = d.training.frozen if variant is None else variant.frozen
    return TrainSpec(
        layer=layer,
        site_in=site_in,
        site_out=site_out,
        architecture=(variant.architecture if variant is not None else None) or d.architecture,
        training=d.training.model_copy(update={"seed": init_seed(plan, layer, variant), "frozen": frozen}),
        evaluation_rows=d.evaluation_rows,
        evaluation_tokens=d.evaluation_tokens,
        model_dtype=d.model_dtype,
    )


def training_estimate(plan: StudyPlan, architecture: DictionaryConfig) -> Estimate:
    """Training and evaluation of one dictionary; evaluation alone where it was streamed, or published."""
    d, c, x, costs = plan.study.dictionaries, plan.study.corpus, plan.shapes, plan.costs
    cost = costs.dictionary(architecture)
    if d.source != "store":
        cost = cost.streamed()
    tokens = min(d.evaluation_tokens, c.held_out_rows * c.context)
    batches = 2 * -(-tokens // _EVALUATED_AT_ONCE)
    evaluation = [
        *costs.forward(2 * tokens, x.n_layers, d.model_dtype, batches=batches, logits=3 * tokens),
        Work("stream", 30.0 * tokens * x.vocab_size * 4),  # softmaxes and their differences
    ]
    at_once = min(tokens, _EVALUATED_AT_ONCE)
    memory = max(cost.memory, cost.weights + 5 * 4 * at_once * x.vocab_size + costs.block_bytes(at_once))
    held = costs.model(d.model_dtype)
    estimate = costs.of_model(held, cost.disk, memory, [*cost.work, *evaluation], flops=cost.flops)
    note = f"{d.training.steps:,} steps x {d.training.batch_size:,} rows"
    return replace(estimate, note=note, shapes=cost.shapes, exact=True, payload=cost.payload)


class TrainPhase(Phase[TrainSpec, TrainInputs]):
    """Trains a layer's dictionary."""

    kind = name = "train"
    per = "layer"
    title, report_field = "Dictionaries", "dictionaries"
    version = 11
    spec, inputs = TrainSpec, TrainInputs
    retention, payload = "keep", (f"{FOLDER}/*",)
    resumes = True
    warms_up = True
    usage = PhaseProfile(
        gpu=(0.40, 0.60),
        batch="dictionaries.training.batch_size",
        when_reading="compute.stage: auto with $TMPDIR on a local disk, or dictionaries.source: stream",
    )
    command = Command(
        "train",
        "mechstudy train study.yaml --layers 12 --max-steps 5000 --profile",
        flags=(count("max_steps", "Training steps per dictionary.", "dictionaries.training.steps"),),
        by_layer=True,
        shared=True,
        resumes_from=True,
    )

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        if plan.study.dictionaries.published is not None:
            return
        for wave, layers in enumerate(plan.layer_groups):
            for layer in layers:
                yield plan.unit(
                    self,
                    f"train[{layer}]",
                    training_spec(plan, layer),
                    training_inputs(plan, wave),
                    layer=layer,
                    wave=wave,
                    estimate=training_estimate(plan, plan.study.dictionaries.architecture),
                )

    def shares(self, unit: Unit) -> bool:
        """Trainings on stored rows; a streamed pass has one process."""
        return any(item.role == "capture" for item in unit.inputs)

    def run(self, spec: TrainSpec, inputs: TrainInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes ``dictionary/`` (SAELens' format), ``evaluation.json``, and logs with times.

        The logs are ``scalars.jsonl``, ``tensorboard/`` and ``timing.json``.
        """
        make_dictionary(spec, inputs, out, runtime)

    def share(self, spec: TrainSpec, inputs: TrainInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """This process' share of every batch; the leader logs, saves and publishes."""
        assert inputs.capture is not None, "a streamed pass is not shared"
        folder = inputs.capture.path / "train"
        copies = {folder / name: Path(copy) for name, copy in runtime.group.broadcast["copies"].items()}
        store = inputs.capture.store("train").reading({file: copy for file, copy in copies.items() if copy.exists()})
        _steps(spec, _rows(store, spec, runtime), out, runtime, logs=False)


class VariantPhase(TrainPhase, Phase[VariantSpec, VariantInputs]):
    """Trains another dictionary of a layer."""

    kind = name = "variant"
    per = "layer"
    title, report_field = "Dictionaries", "variants"
    version = 5  # labels of controls
    spec, inputs = VariantSpec, VariantInputs  # type: ignore[assignment]
    calibrated_as = "train"

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        """One unit per layer and variant."""
        for wave, layers in enumerate(plan.layer_groups):
            for layer in layers:
                for variant in plan.study.dictionaries.every_variant:
                    spec = VariantSpec(
                        **dict(training_spec(plan, layer, variant)),
                        variant=variant.name,
                        labelled=_LABELLED if variant.frozen else 0,
                    )
                    yield plan.unit(
                        self,
                        f"variant[{layer}:{variant.name}]",
                        spec,
                        [*training_inputs(plan, wave), *plan.inputs("own", TrainPhase, layer=layer)],
                        layer=layer,
                        variant=variant.name,
                        wave=wave,
                        estimate=_with_labels(training_estimate(plan, spec.architecture), plan, spec),
                    )

    def run(  # type: ignore[override]  # narrower types, same uses
        self, spec: VariantSpec, inputs: VariantInputs, out: ArtifactWriter, runtime: Runtime
    ) -> None:
        """Writes what training writes, and ``agreement.json`` with the layer's own; of a control, also labels."""
        make_dictionary(spec, inputs, out, runtime, spec.variant)
        own, other = (
            cast("Dictionary", dictionaries.load_dictionary(path / FOLDER)) for path in (inputs.own.path, out.path)
        )
        agreement = dictionaries.compare(own, other)
        if spec.labelled:
            model, corpus = inputs.model.load(runtime, spec.model_dtype), inputs.corpus.load()
            rows_BT = corpus.held_out[: max(2, _LABEL_TOKENS // corpus.held_out.shape[1])].long()
            agreement["labels"] = {
                name: features.dictionary_claims(
                    model, dictionary, rows_BT, spec.labelled,
                    seed=spec.training.seed, batch_tokens=runtime.batch_tokens, progress=runtime.progress,
                )
                for name, dictionary in (("own", own.to(model.device)), ("variant", other.to(model.device)))
            }  # fmt: skip
        out.write_json("agreement.json", agreement)


def _with_labels(estimate: Estimate, plan: StudyPlan, spec: VariantSpec) -> Estimate:
    """With the two searches for what features fire on, if there are any."""
    if not spec.labelled:
        return estimate
    corpus, costs = plan.study.corpus, plan.costs
    tokens = 2 * min(_LABEL_TOKENS, corpus.held_out_rows * corpus.context)
    cost = costs.dictionary(spec.architecture)
    searches = [
        *costs.forward(
            tokens, spec.layer + 1, spec.model_dtype, batches=-(-tokens // costs.batch), context=corpus.context
        ),
        Work("train", 2.0 * tokens * cost.d_in * cost.n_features, "float32", cost.d_in),
        Work("stream", 12.0 * tokens * cost.n_features),
    ]
    more = plan.costs.of_model(costs.model(spec.model_dtype), 0, 0, searches)
    return replace(estimate, work=(*estimate.work, *searches), flops=estimate.flops + more.flops)


def make_dictionary(
    spec: TrainSpec, inputs: TrainInputs, out: ArtifactWriter, runtime: Runtime, variant: str | None = None
) -> None:
    """Trains the dictionary on stored rows, or takes it from the streamed pass, and evaluates it."""
    if inputs.capture is not None:
        dictionary, held_out, rows_read = _train(spec, inputs, inputs.capture, out, runtime)
    else:
        assert inputs.stream is not None, "rows come from a store or from a pass"
        dictionary, held_out, rows_read = _take(spec, inputs, inputs.stream, variant, out, runtime)
    record = dictionaries.evaluation_record(
        dictionary,
        spec.architecture,
        spec.training,
        held_out,
        inputs.model.load(runtime, spec.model_dtype),
        inputs.corpus.load().held_out,
        layer=spec.layer,
        rows_read=rows_read,
        n_tokens=spec.evaluation_tokens,
        progress=runtime.progress,
    )
    out.write_json("evaluation.json", record)
    out.write_json("timing.json", dictionaries.training_time(out.path, spec.training.steps * spec.training.batch_size))


_Made = tuple["Dictionary", "dictionaries.FirstBatches", Mapping[str, float | None]]


def _train(
    spec: TrainSpec, inputs: TrainInputs, capture: CaptureArtifact, out: ArtifactWriter, runtime: Runtime
) -> _Made:
    """From a store: the trained dictionary, held-out rows, and facts about the training rows."""
    training, (site_in, site_out), store = spec.training, spec.sites, capture.store("train")
    epochs = training.steps * training.batch_size / store.n_rows
    with activations.staged(store, spec.sites, runtime.options.stage, epochs=epochs, say=runtime.progress.log) as local:
        rows = _rows(local, spec, runtime)
        findings, mixing = dictionaries.store_findings(
            local, rows, inputs.corpus.n_train_documents, spec.architecture, training, runtime.progress
        )
        copies = {file.name: str(copy) for file, copy in local.copies.items()}
        with runtime.group.sharing({"copies": copies}, together=True):
            dictionary = _steps(spec, rows, out, runtime, logs=True)
    if findings:
        dictionary.metadata["health"] = findings + dictionary.metadata.get("health", [])
    dictionary.save(out.path / FOLDER)
    # Sinks stay in to measure their share; the evaluation leaves them out by the dictionary's own limit.
    batch = dictionaries.EVALUATION_BATCH
    evaluated = activations.RowReader(capture.store("held_out"), site_in, site_out, batch, sink_ratio=None, widen=True)
    n_batches = max(1, min(spec.evaluation_rows, evaluated.rows_per_epoch) // batch)
    facts = {"distinct_rows": rows.rows_per_epoch, "train_sink_rows": rows.sink_rows, "mixing": mixing}
    return dictionary, dictionaries.FirstBatches(evaluated.batches, n_batches), facts


def _take(
    spec: TrainSpec,
    inputs: TrainInputs,
    stream: StreamArtifact,
    variant: str | None,
    out: ArtifactWriter,
    runtime: Runtime,
) -> _Made:
    """From a streamed pass: the dictionary it trained, held-out rows, and facts about the training rows."""
    shutil.copytree(stream.folder(spec.layer, variant), out.path, dirs_exist_ok=True)
    dictionary = cast("Dictionary", dictionaries.load_dictionary(out.path / FOLDER, device=runtime.device))
    corpus = inputs.corpus.load()
    held_out = held_out_rows(
        inputs.model.load(runtime, spec.model_dtype), corpus.held_out, spec.sites, spec.evaluation_rows, runtime
    )
    distinct = corpus.train.shape[0] * (corpus.train.shape[1] - 1)
    return dictionary, held_out, {"distinct_rows": distinct, "train_sink_rows": None, "mixing": stream.mixing}


def held_out_rows(
    model: LanguageModel,
    documents: Tensor,
    sites: tuple[Site, Site],
    n_rows: int,
    runtime: Runtime,
    *,
    below: tuple[Site, ...] = (),
) -> dictionaries.FirstBatches:
    """Rows of two sites of held-out documents [n, T], as forward passes make them.

    Those of the sites ``below`` precede the inputs, side by side.
    """
    documents = documents[: max(1, n_rows // documents.shape[1])]
    n_rows = documents.shape[0] * (documents.shape[1] - 1)
    source = activations.StreamBatches(
        model,
        documents,
        list(dict.fromkeys((*below, *sites))),
        min(dictionaries.EVALUATION_BATCH, n_rows),
        window_rows=n_rows,
        sink_ratio=None,
        batch_tokens=runtime.batch_tokens,
    )
    n_batches = max(1, n_rows // source.batch_size)
    if not below:
        return dictionaries.FirstBatches(dictionaries.View(source, *map(str, sites)).batches, n_batches)
    read, written = [*map(str, below), str(sites[0])], str(sites[1])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        import torch  # plans are made without it

        for rows in source.batches():
            yield torch.cat([rows[site].float() for site in read], 1), rows[written].float()

    return dictionaries.FirstBatches(batches, n_batches)


def _steps(
    spec: TrainSpec, rows: activations.RowReader, out: ArtifactWriter, runtime: Runtime, *, logs: bool
) -> Dictionary:
    """The training steps of this process. Only the leader logs, and counts them."""
    trained = dictionaries.train(
        spec.architecture,
        spec.training,
        rows,
        site_in=str(spec.sites[0]),
        site_out=str(spec.sites[1]),
        out=out.path if logs else None,
        checkpoint=out.scratch / CHECKPOINT,
        progress=runtime.progress if logs else None,
        device=runtime.device,
    )
    return cast("Dictionary", trained)  # one site


def _rows(store: Store, spec: TrainSpec, runtime: Runtime) -> activations.RowReader:
    return activations.RowReader(
        store,
        *spec.sites,
        spec.training.batch_size,
        seed=spec.training.seed,
        verify=runtime.options.verify_reads,
        device=runtime.device,
    )
