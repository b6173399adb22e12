"""Phase 0a: load the model and check it by exact identities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``model.json``: what the model is, its files' checksums, and the residual of every check."""
    from mechstudy.models.language_model import load_model
    from mechstudy.models.sources import read_config, resolve_source, weight_files
    from mechstudy.models.validate import validate_model
    from mechstudy.store.manifest import sha256_of

    folder = resolve_source(spec["source"], base=runtime.base)
    model = load_model(folder, dtype=spec["dtype"], device=runtime.device, trust_remote_code=spec["trust_remote_code"])
    runtime.cache["model", out.id, spec["dtype"], runtime.device] = model
    config = model.hf.config
    out.write_json(
        "model.json",
        {
            "name": model.name,
            "source": spec["source"],
            "family": model.arch.family,
            "model_type": read_config(folder)["model_type"],
            "n_layers": model.n_layers,
            "d_model": model.d_model,
            "d_mlp": model.d_mlp,
            "n_heads": config.num_attention_heads,
            "n_kv_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            "vocab_size": model.vocab_size,
            "n_parameters": sum(p.numel() for p in model.hf.parameters()),
            "dtype": spec["dtype"],
            "checks": validate_model(model),
            "files_sha256": {path.name: sha256_of(path) for path in weight_files(folder)},
        },
    )
