"""Phase 2: activations of a behaviour's prompts, and of the corpus, into stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechstudy.core.artifacts import Artifact, ArtifactWriter
from mechstudy.core.runtime import Runtime


def run_prompts(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes one store per split: ``train/``, ``test/``."""
    from mechstudy.activations.capture import capture_prompts
    from mechstudy.activations.config import PromptCaptureConfig
    from mechstudy.activations.quota import Quota
    from mechstudy.phases.common import loaded_model, prompts_of

    config = PromptCaptureConfig.model_validate(spec)
    model = loaded_model(inputs["model"], runtime)
    quota = None if runtime.quota is None else Quota(runtime.quota, out.store.root)
    for split in config.splits:
        capture_prompts(
            model,
            prompts_of(inputs, split),
            config.resolve_sites(model.n_layers),
            config.positions,
            out.path / split,
            versions=config.versions,
            dtype=config.dtype,
            batch_tokens=runtime.batch_tokens,
            progress=runtime.progress,
            quota=quota,
        )


def run_corpus(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes two stores, ``train/`` and ``held_out/``, rows permuted; resumes where it was killed."""
    from mechstudy.activations.capture import capture_corpus, site_width
    from mechstudy.activations.corpus import Corpus
    from mechstudy.activations.quota import Quota, require_room
    from mechstudy.models.sites import Site
    from mechstudy.phases.common import loaded_model

    model = loaded_model(inputs["model"], runtime, spec["model_dtype"])
    corpus = Corpus.load(inputs["corpus"].path)
    sites = [Site(kind, layer) for layer in spec["layers"] for kind in spec["sites"]]
    quota = None if runtime.quota is None else Quota(runtime.quota, out.store.root)
    widths = {site: site_width(model, site) for site in sites}
    require_room(out.path, widths, corpus.train.numel() + corpus.held_out.numel(), spec["dtype"], quota)
    for split, rows in (("train", corpus.train), ("held_out", corpus.held_out)):
        done = out.scratch / f"{split}.done"
        if done.exists():
            continue
        store = capture_corpus(
            model,
            rows,
            sites,
            out.path / split,
            dtype=spec["dtype"],
            seed=spec["seed"],
            batch_tokens=runtime.batch_tokens,
            progress=runtime.progress,
            quota=quota,
            checkpoint=out.scratch / f"{split}.checkpoint",
        )
        costs = {str(site): files.quantisation_fvu for site, files in store.sites.items() if files.quantisation_fvu}
        if costs:
            told = ", ".join(f"{site} {cost:.1e}" for site, cost in costs.items())
            runtime.progress.log(f"{split}: 8-bit rows, fraction of variance lost: {told}")
        done.touch()
