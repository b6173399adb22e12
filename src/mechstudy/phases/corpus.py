"""Phase 2a: text for dictionary training, as rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechstudy.core.artifacts import Artifact, ArtifactWriter
from mechstudy.core.runtime import Runtime


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``tokens.safetensors`` and ``corpus.json``."""
    from mechstudy.activations.config import CorpusConfig
    from mechstudy.activations.corpus import build_corpus
    from mechstudy.phases.common import loaded_model

    config = CorpusConfig.model_validate({k: v for k, v in spec.items() if k != "fingerprint"})
    sampled = config.parsed().kind == "sampled"
    model = loaded_model(inputs["model"], runtime, "bfloat16" if sampled else None)
    corpus = build_corpus(
        config,
        model.tokenizer,
        model=model if sampled else None,
        scratch=out.scratch / "samples",
        base=runtime.base,
        progress=runtime.progress,
    )
    corpus.save(out.path)
