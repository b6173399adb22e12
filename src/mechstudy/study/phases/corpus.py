"""Phase 2a: text for dictionary training, as rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``tokens.safetensors`` and ``corpus.json``."""
    from mechstudy.activations.config import FILE_KINDS, CorpusConfig
    from mechstudy.corpus.corpus import build_corpus
    from mechstudy.study.phases.inputs import loaded_model

    config = CorpusConfig.model_validate({k: v for k, v in spec.items() if k != "fingerprint"})
    source = config.parsed()
    sampled = source.kind == "sampled"
    if source.kind in FILE_KINDS:  # the study's paths are relative to the study
        config = config.model_copy(update={"source": f"{source.kind}:{runtime.base / source.path}"})
    model = loaded_model(inputs["model"], runtime, "bfloat16" if sampled else None)
    corpus = build_corpus(
        config,
        model.tokenizer,
        model=model if sampled else None,
        scratch=out.scratch / "samples",
        progress=runtime.progress,
    )
    replace(corpus, source=spec["source"]).save(out.path)
