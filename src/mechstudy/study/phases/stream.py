"""Phase 3 without a store: several layers' dictionaries from one streamed pass of the model over the corpus."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``layers/<layer>/dictionary/`` with its logs for every layer, ``variants/<layer>/<name>/dictionary/``, and
    ``pass.json``; resumes where killed."""
    from mechstudy.activations.multi_site_batches import StreamPass
    from mechstudy.corpus.corpus import Corpus
    from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
    from mechstudy.dictionaries.training.train_many import Job, View, train_many
    from mechstudy.models.sites import Site
    from mechstudy.study.phases.inputs import loaded_model
    from mechstudy.study.phases.rows_health import of_stream

    model = loaded_model(inputs["model"], runtime, spec["model_dtype"])
    sites = [Site(kind, layer) for layer in spec["layers"] for kind in dict.fromkeys(spec["sites"])]
    own = {"name": None, "architecture": spec["architecture"], "seeds": spec["seeds"]}
    jobs = []
    for layer in spec["layers"]:
        site_in, site_out = (str(Site(kind, layer)) for kind in spec["sites"])
        for variant in (own, *spec.get("variants", ())):
            place = _place(layer, variant["name"])
            architecture = DictionaryConfig.model_validate(variant["architecture"])
            recipe = TrainConfig.model_validate(spec["training"] | {"seed": variant["seeds"][str(layer)]})
            checkpoint = out.scratch / f"{place.replace('/', '-')}.safetensors"
            jobs.append(Job(place, architecture, recipe, site_in, site_out, out.path / place, checkpoint))
    source = StreamPass(
        model,
        Corpus.load(inputs["corpus"].path).train,
        sites,
        jobs[0].recipe.batch_size,
        window_rows=spec["window_rows"],
        seed=spec["seed"],
        batch_tokens=runtime.batch_tokens,
    )
    runtime.progress.log(f"a batch is {source.mixing():.2f} as mixed as rows of the whole corpus would be")
    findings = {
        job.name: of_stream(
            source, View(source, job.site_in, job.site_out), job.architecture, job.recipe, runtime.progress
        )
        for job in jobs
    }
    trained = train_many(jobs, source, progress=runtime.progress, device=runtime.device)
    for place, dictionary in trained.items():
        if findings[place]:
            dictionary.metadata["health"] = findings[place] + dictionary.metadata.get("health", [])
        dictionary.save(out.path / place / "dictionary")
    out.write_json(
        "pass.json",
        {
            "mixing": source.mixing(),
            "window_bytes": source.nbytes,
            "steps_per_window": source.steps_per_window,
            "sink_limits": source.limits,
        },
    )


def take(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """One layer's dictionary out of the streamed pass, judged on held-out text: what `phases.train.run` writes."""
    from mechstudy.activations.multi_site_batches import StreamPass
    from mechstudy.corpus.corpus import Corpus
    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.dictionaries.training.train_many import View
    from mechstudy.models.sites import Site
    from mechstudy.study.phases.inputs import inputs_of, loaded_model
    from mechstudy.study.phases.train import EVALUATION_BATCH, FirstBatches, judge

    [streamed] = inputs_of(inputs, "stream").values()
    shutil.copytree(streamed.path / _place(spec["layer"], spec.get("variant")), out.path, dirs_exist_ok=True)
    dictionary = Dictionary.load(out.path / "dictionary", device=runtime.device)
    sites = [Site(kind, spec["layer"]) for kind in (spec["site_in"], spec["site_out"])]
    model = loaded_model(inputs["model"], runtime, spec["model_dtype"])
    corpus = Corpus.load(inputs["corpus"].path)
    held_out = corpus.held_out[: max(1, spec["evaluation_rows"] // corpus.held_out.shape[1])]
    rows = held_out.shape[0] * (held_out.shape[1] - 1)
    source = StreamPass(
        model, held_out, list(dict.fromkeys(sites)), min(EVALUATION_BATCH, rows), window_rows=rows, sink_ratio=None,
        batch_tokens=runtime.batch_tokens,
    )  # fmt: skip
    batches = FirstBatches(View(source, *map(str, sites)).batches, max(1, rows // source.batch_size))
    seen = {
        "distinct_rows": corpus.train.shape[0] * (corpus.train.shape[1] - 1),
        "train_sink_rows": None,
        "mixing": streamed.read_json("pass.json")["mixing"],
    }
    judge(spec, inputs, dictionary, batches, seen, out, runtime)


def _place(layer: int, variant: str | None) -> str:
    """Where a pass keeps a dictionary."""
    return f"layers/{layer}" if variant is None else f"variants/{layer}/{variant}"
