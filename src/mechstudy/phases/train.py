"""Phase 3: one layer's dictionary, trained on stored rows and judged on held-out ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from mechstudy.core.artifacts import Artifact, ArtifactWriter
from mechstudy.core.runtime import Runtime

_EVALUATION_BATCH = 1024


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``dictionary/`` (SAELens' format), ``evaluation.json``, and logs with clock times:
    ``scalars.jsonl``, ``tensorboard/``, ``timing.json``."""
    from mechstudy.activations.reader import RowReader
    from mechstudy.activations.store import Store
    from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
    from mechstudy.dictionaries.train import train
    from mechstudy.models.sites import Site
    from mechstudy.phases.common import inputs_of

    [capture] = inputs_of(inputs, "capture").values()
    architecture = DictionaryConfig.model_validate(spec["architecture"])
    training = TrainConfig.model_validate(spec["training"])
    sites = Site(spec["site_in"], spec["layer"]), Site(spec["site_out"], spec["layer"])
    store = Store.open(capture.path / "train")
    source = RowReader(store, sites[0], sites[1], training.batch_size, seed=training.seed)
    dictionary = train(
        architecture,
        training,
        source,
        site_in=str(sites[0]),
        site_out=str(sites[1]),
        out=out.path,
        checkpoint=out.scratch / "checkpoint.safetensors",
        progress=runtime.progress,
        device=runtime.device,
    )
    dictionary.save(out.path / "dictionary")
    out.write_json(
        "evaluation.json",
        {
            "layer": spec["layer"],
            "kind": architecture.kind,
            "activation": architecture.activation,
            "site_in": str(sites[0]),
            "site_out": str(sites[1]),
            "d_in": dictionary.cfg.d_in,
            "d_out": dictionary.cfg.d_out,
            "d_sae": dictionary.cfg.d_sae,
            "k": architecture.k,
            "steps": training.steps,
            "train_rows": training.steps * training.batch_size,
            "distinct_rows": source.rows_per_epoch,
            "train_sink_rows": source.sink_rows,
        }
        | _held_out(spec, inputs, dictionary, sites, runtime),
    )
    out.write_json("timing.json", _timing(out, training.steps * training.batch_size))


def _held_out(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], dictionary, sites, runtime: Runtime):
    """Reconstruction on held-out rows, and what splicing it in does to the model's loss."""
    from mechstudy.activations.corpus import Corpus
    from mechstudy.activations.reader import RowReader
    from mechstudy.activations.store import Store
    from mechstudy.dictionaries.evaluate import evaluate, language_model_effect
    from mechstudy.phases.common import inputs_of, loaded_model

    [capture] = inputs_of(inputs, "capture").values()
    store = Store.open(capture.path / "held_out")
    # Sinks stay in, so that their share is known; the evaluation leaves them out by the dictionary's own limit.
    rows = RowReader(store, sites[0], sites[1], _EVALUATION_BATCH, sink_ratio=None)
    n_batches = max(1, min(spec["evaluation_rows"], rows.rows_per_epoch) // _EVALUATION_BATCH)
    reconstruction = evaluate(dictionary, islice(rows.batches(), n_batches))
    model = loaded_model(inputs["model"], runtime, spec["model_dtype"])
    held_out = Corpus.load(inputs["corpus"].path).held_out
    n_documents = max(1, spec["evaluation_tokens"] // held_out.shape[1])
    effect = language_model_effect(model, dictionary, held_out[:n_documents].long())
    reconstruction["n_eval_rows"] = reconstruction.pop("n_rows")
    return reconstruction | effect


def _timing(out: ArtifactWriter, rows: int) -> dict[str, float]:
    lines = out.file("scalars.jsonl").read_text().splitlines()
    seconds = float(json.loads(lines[-1])["seconds"])
    return {"train_seconds": seconds, "rows_per_second": rows / seconds if seconds > 0 else 0.0}
