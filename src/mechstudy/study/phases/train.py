"""Phase 3: one layer's dictionary, trained on stored rows and judged on held-out ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter

if TYPE_CHECKING:
    from torch import Tensor

    from mechstudy.dictionaries.dictionary import Dictionary

EVALUATION_BATCH = 1024
CHECKPOINT = "checkpoint.safetensors"


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``dictionary/`` (SAELens' format), ``evaluation.json``, and logs with clock times:
    ``scalars.jsonl``, ``tensorboard/``, ``timing.json``."""
    from mechstudy.activations.reader import RowReader
    from mechstudy.activations.staging import staged
    from mechstudy.activations.store import Store
    from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
    from mechstudy.dictionaries.training.trainer import train
    from mechstudy.models.sites import Site
    from mechstudy.study.phases.inputs import inputs_of
    from mechstudy.study.phases.rows_health import of_store

    [capture] = inputs_of(inputs, "capture").values()
    architecture = DictionaryConfig.model_validate(spec["architecture"])
    training = TrainConfig.model_validate(spec["training"])
    sites = Site(spec["site_in"], spec["layer"]), Site(spec["site_out"], spec["layer"])
    store = Store.open(capture.path / "train")
    epochs = training.steps * training.batch_size / store.n_rows
    with staged(store, sites, runtime.stage, epochs=epochs, say=runtime.progress.log) as local:
        source = RowReader(
            local, sites[0], sites[1], training.batch_size, seed=training.seed, verify=runtime.verify_reads,
            device=runtime.device,
        )  # fmt: skip
        n_documents = inputs["corpus"].read_json("corpus.json")["n_train_documents"]
        findings, mixing = of_store(local, source, n_documents, architecture, training, runtime.progress)
        copies = {file.name: str(copy) for file, copy in local.copies.items()}
        with runtime.ranks.helping({"copies": copies}, together=True):
            dictionary = train(
                architecture,
                training,
                source,
                site_in=str(sites[0]),
                site_out=str(sites[1]),
                out=out.path,
                checkpoint=out.scratch / CHECKPOINT,
                progress=runtime.progress,
                device=runtime.device,
            )
    if findings:
        dictionary.metadata["health"] = findings + dictionary.metadata.get("health", [])
    dictionary.save(out.path / "dictionary")
    # Sinks stay in, so that their share is known; the evaluation leaves them out by the dictionary's own limit.
    held_out = Store.open(capture.path / "held_out")
    rows = RowReader(held_out, sites[0], sites[1], EVALUATION_BATCH, sink_ratio=None, widen=True)
    n_batches = max(1, min(spec["evaluation_rows"], rows.rows_per_epoch) // EVALUATION_BATCH)
    seen = {"distinct_rows": source.rows_per_epoch, "train_sink_rows": source.sink_rows, "mixing": mixing}
    judge(spec, inputs, dictionary, FirstBatches(rows.batches, n_batches), seen, out, runtime)


def share(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """One process' share of every batch of `run`'s training; the leader logs, saves and publishes."""
    from mechstudy.activations.reader import RowReader
    from mechstudy.activations.store import Store
    from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
    from mechstudy.dictionaries.training.trainer import train
    from mechstudy.models.sites import Site
    from mechstudy.study.phases.inputs import inputs_of

    [capture] = inputs_of(inputs, "capture").values()
    training = TrainConfig.model_validate(spec["training"])
    site_in, site_out = Site(spec["site_in"], spec["layer"]), Site(spec["site_out"], spec["layer"])
    folder = capture.path / "train"
    copies = {folder / name: Path(copy) for name, copy in runtime.ranks.told["copies"].items()}
    store = Store.open(folder).reading({file: copy for file, copy in copies.items() if copy.exists()})
    train(
        DictionaryConfig.model_validate(spec["architecture"]),
        training,
        RowReader(
            store,
            site_in,
            site_out,
            training.batch_size,
            seed=training.seed,
            verify=runtime.verify_reads,
            device=runtime.device,
        ),
        site_in=str(site_in),
        site_out=str(site_out),
        checkpoint=out.scratch / CHECKPOINT,
        device=runtime.device,
    )


class FirstBatches:
    """The first ``n`` batches of what ``make`` begins, as often as they are asked for."""

    def __init__(self, make: Callable[[], Iterator[tuple[Tensor, Tensor]]], n: int) -> None:
        self._make, self._n = make, n

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(self._make(), self._n)


def judge(
    spec: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    dictionary: Dictionary,
    held_out: FirstBatches,
    seen: Mapping[str, float | None],
    out: ArtifactWriter,
    runtime: Runtime,
) -> None:
    """Writes ``evaluation.json`` and ``timing.json``: reconstruction of held-out rows, and what splicing the
    dictionary in does to the model's loss."""
    from mechstudy.corpus.corpus import Corpus
    from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
    from mechstudy.dictionaries.evaluation.model_effect import language_model_effect
    from mechstudy.dictionaries.evaluation.reconstruction import evaluate
    from mechstudy.dictionaries.training.health import Health
    from mechstudy.study.phases.inputs import loaded_model

    architecture, training, cfg = spec["architecture"], spec["training"], dictionary.cfg
    reconstruction = evaluate(dictionary, held_out, non_finite=training["non_finite"])
    reconstruction["n_eval_rows"] = reconstruction.pop("n_rows")
    watch = Health(DictionaryConfig.model_validate(architecture), TrainConfig.model_validate(training))
    for finding in watch.held_out(reconstruction["l0"]):
        runtime.progress.log(f"{finding.text}; fix: {finding.fix}")
    model = loaded_model(inputs["model"], runtime, spec["model_dtype"])
    documents = Corpus.load(inputs["corpus"].path).held_out
    n_documents = max(1, spec["evaluation_tokens"] // documents.shape[1])
    effect = language_model_effect(model, dictionary, documents[:n_documents].long())
    rows = training["steps"] * training["batch_size"]
    out.write_json(
        "evaluation.json",
        {
            "layer": spec["layer"],
            "kind": architecture["kind"],
            "activation": dictionary.metadata["trained_as"],
            "site_in": cfg.site_in,
            "site_out": cfg.site_out,
            "d_in": cfg.d_in,
            "d_out": cfg.d_out,
            "d_sae": cfg.d_sae,
            "k": architecture["k"],
            "steps": training["steps"],
            "train_rows": rows,
            "health": dictionary.metadata.get("health", []) + watch.as_json(),
            **seen,
        }
        | reconstruction
        | effect,
    )
    out.write_json("timing.json", _timing(out, rows))


def _timing(out: ArtifactWriter, rows: int) -> dict[str, float]:
    lines = out.file("scalars.jsonl").read_text().splitlines()
    seconds = float(json.loads(lines[-1])["seconds"])
    return {"train_seconds": seconds, "rows_per_second": rows / seconds if seconds > 0 else 0.0}
