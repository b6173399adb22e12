"""One published dictionary, pinned by the checksum of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.circuit_tracer import CONFIG
from mechstudy.dictionaries.formats.recognise import CLT, Source, source_of
from mechstudy.dictionaries.formats.sets import clt_files
from mechstudy.dictionaries.formats.sets import listed as listed_in
from mechstudy.store.digests import file_sha256


def checksum(path: Path, listed: Path | None = None) -> str:
    """SHA-256 over the names and contents of a dictionary's files, its set's config.yaml among them.

    Args:
        path: its folder or file.
        listed: the folder of the set that lists it, if any does.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file())
        files += [p for p in clt_files(path) or () if p.parent != path]
    else:
        config = (path.parent if listed is None else listed) / CONFIG
        files = [path, config] if config.is_file() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def is_unchanged(record: Mapping[str, Any]) -> bool:
    """Whether the files of a record (see `pinned`) are there and have its checksum."""
    path, listed = Path(record["path"]), _listed(record)
    return path.exists() and checksum(path, listed) == record["sha256"]


def pinned(record: Mapping[str, Any]) -> Source:
    """The dictionary of a record, at the sites that it names.

    Args:
        record: path, listed (optional), sha256, site_in, site_out, and the address it came from; of one layer of a
            cross-layer transcoder also clt_layer.

    Raises:
        MechstudyError: its files are gone, or are not those of the checksum.
    """
    path, listed = Path(record["path"]), _listed(record)
    if not is_unchanged(record):
        raise MechstudyError(
            "the published dictionary was " + ("changed" if path.exists() else "removed"),
            where=str(path),
            facts={"from": str(record["address"])},
            fix="put the same files there again; or run the study again, which judges the new ones",
        )
    if (layer := record.get("clt_layer")) is not None:
        sites = str(record["site_in"]), str(record["site_out"])
        return Source(CLT, path, int(layer), sites=sites)
    source = source_of(path) if listed is None else next(one for one in listed_in(listed) if one.path == path)
    return replace(source, sites=(str(record["site_in"]), str(record["site_out"])))


def _listed(record: Mapping[str, Any]) -> Path | None:
    listed = record.get("listed")
    return None if listed is None else Path(listed)
