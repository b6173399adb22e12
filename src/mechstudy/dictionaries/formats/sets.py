"""Places of several dictionaries: layers' files, folders side by side, and lists in a circuit-tracer config.yaml."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats import gemma_scope, qwen_scope
from mechstudy.dictionaries.formats.circuit_tracer import CONFIG, read_config
from mechstudy.dictionaries.formats.fields import Fields
from mechstudy.dictionaries.formats.hub import HubPath
from mechstudy.dictionaries.formats.recognise import (
    CROSS_LAYER,
    GEMMA_CLT,
    LISTED,
    LOOKED_FOR,
    QWEN,
    SET,
    SET_FILE,
    SEVERAL,
    Source,
    formats_in,
    listing,
    only_format,
    source_of,
)
from mechstudy.models import hub

URI = "hf://"
_LAYER_FOLDER = re.compile(r"layer_\d+")


def sources(path: Path) -> list[Source]:
    """Every dictionary at a local path, ordered by the numbers in their names.

    It is the path itself where that holds one, else the layers of a set, else its folders that hold one, else the one
    below each of its folders ``layer_N``.

    Raises:
        MechstudyError: there is none, several below a ``layer_N``, or files of two tools; a listed file is neither
            here nor can be fetched.
    """
    if not path.is_dir():
        return [source_of(path)]
    if formats_in(path):
        kind, _ = only_format(path)
        if kind == LISTED:
            return listed(path)
        if kind in (SET, QWEN):
            pattern = SET_FILE if kind == SET else qwen_scope.FILE
            return [source_of(child) for child in _ordered(p for p in path.iterdir() if pattern.fullmatch(p.name))]
        return [source_of(path)]
    inside = [child for child in path.iterdir() if child.is_dir() and _holds_one(child)]
    if not inside and (nested := _below_layers(path)):
        return nested
    if not inside:
        raise MechstudyError(
            "there is no dictionary here, nor one folder down",
            where=str(path),
            facts={"holds": listing(path), "looked for": LOOKED_FOR},
            fix="the folder that holds one; deeper ones by layer: {LAYER: FOLDER, ...}",
        )
    return [source_of(child) for child in _ordered(inside)]


def _below_layers(path: Path) -> list[Source]:
    """The one dictionary below each ``layer_N`` folder, as in Gemma Scope's ``layer_N/width_16k/average_l0_41``.

    Raises:
        MechstudyError: there are several below one of them.
    """
    layers = _ordered(child for child in path.iterdir() if child.is_dir() and _LAYER_FOLDER.fullmatch(child.name))
    found: list[Source] = []
    for layer in layers:
        below = [folder for pattern in ("*/", "*/*/") for folder in sorted(layer.glob(pattern)) if _holds_one(folder)]
        if len(below) > 1:
            names = [str(folder.relative_to(path)) for folder in below]
            raise MechstudyError(
                f"{layer.name} holds {len(below)} dictionaries, and which is meant is not clear",
                where=str(path),
                facts={"candidates": ", ".join(names[:8]) + f" and {len(names) - 8} more" * (len(names) > 8)},
                fix="a mapping from layers: {LAYER: FOLDER, ...}",
            )
        found += [source_of(folder) for folder in below]
    return found


def listed(folder: Path) -> list[Source]:
    """The transcoders that a set's config.yaml lists, by layer: the first is layer 0's.

    Files on the hub (``hf://owner/name/path@revision``) come from its cache, or are downloaded.

    Raises:
        MechstudyError: an entry is no file's address, or files are neither here nor can be fetched: they are listed.
    """
    config = read_config(folder)
    files = _fetched(_entries(config), folder)
    return [replace(source_of(path), layer=layer, listed=config) for layer, path in enumerate(files)]


def clt_files(folder: Path) -> list[Path] | None:
    """Files of a Gemma Scope 2 cross-layer transcoder, in its folder or listed in config.yaml; None for other places.

    Raises:
        MechstudyError: as `sources`; or a layer is missing.
    """
    kind = _cross_layer_format(folder)
    if kind == GEMMA_CLT:
        return gemma_scope.clt_files(folder)
    return _fetched(_entries(read_config(folder)), folder) if kind == LISTED else None


def is_cross_layer(path: Path) -> bool:
    """Whether a folder holds one cross-layer transcoder, of circuit-tracer's format or Gemma Scope 2."""
    return path.is_dir() and _cross_layer_format(path) is not None


def _cross_layer_format(folder: Path) -> str | None:
    """The format of a folder that holds one cross-layer transcoder; None for other folders."""
    kinds = [kind for kind, _ in formats_in(folder)]
    if kinds == [LISTED]:
        return LISTED if read_config(folder).text("model_kind") == "cross_layer_transcoder" else None
    return kinds[0] if len(kinds) == 1 and kinds[0] in CROSS_LAYER else None


def _entries(config: Fields) -> list[str]:
    content = config.content.get("transcoders")
    if not isinstance(content, list) or not content or not all(isinstance(entry, str) and entry for entry in content):
        raise MechstudyError(
            "transcoders must be a list of files", where=str(config.where),
            fix=f"one {URI}owner/name/path@revision, or path, for each layer from 0 on",
        )  # fmt: skip
    return content


def _fetched(entries: list[str], folder: Path) -> list[Path]:
    """Local files of a list's entries. Those in the hub's cache are used as they are, the others downloaded."""
    places = [_hub_place(entry) if entry.startswith(URI) else None for entry in entries]
    files = [
        (folder / entry) if place is None else _cached(place) for entry, place in zip(entries, places, strict=True)
    ]
    missing = [entry for entry, path in zip(entries, files, strict=True) if path is None or not path.exists()]
    remote = [entry for entry in missing if entry.startswith(URI)]
    if len(missing) > len(remote) or (remote and _offline()):
        raise _absent(missing, entries, folder, "the hub is not asked (HF_HUB_OFFLINE)" if remote else "")
    for i, place in enumerate(places):
        if place is not None and files[i] is None:
            try:
                files[i] = hub.download_file(place.repo, place.inside, revision=place.revision)
            except MechstudyError as error:
                raise _absent(remote, entries, folder, f"{error.what} ({error.facts.get('reason', '')})") from error
    return [path for path in files if path is not None]


def _absent(missing: list[str], entries: list[str], folder: Path, reason: str) -> MechstudyError:
    names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    facts = {"missing": names} | ({"reason": reason} if reason else {})
    return MechstudyError(
        f"{len(missing)} of the {len(entries)} files that this transcoder set lists are not here",
        where=str(folder / CONFIG),
        facts=facts,
        fix="fetch them where the hub can be reached (mechstudy dictionary pull hf:owner/name/path), "
        "or list local files",
    )


def _hub_place(uri: str) -> HubPath:
    """The place of ``hf://owner/name/path``, with ``@revision`` or ``?revision=`` behind it."""
    text, _, query = uri.removeprefix(URI).partition("?")
    if query:
        revision = re.fullmatch(r"revision=([^&]+)", query)
        text += f"@{revision[1] if revision else query}"
    place = HubPath.parse(f"hf:{text}")
    if not place.inside:
        raise MechstudyError(f"{uri!r} names no file", fix=f"{URI}owner/name/path@revision")
    return place


def _cached(place: HubPath) -> Path | None:
    snapshot = hub.cached_folder(place.repo, patterns=[place.inside], revision=place.revision)
    return None if snapshot is None or not (snapshot / place.inside).exists() else snapshot / place.inside


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _holds_one(folder: Path) -> bool:
    """Whether a folder holds one dictionary by itself, and not a set or all layers of one."""
    return any(kind not in SEVERAL for kind, _ in formats_in(folder))


def _ordered(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)] or [0])
