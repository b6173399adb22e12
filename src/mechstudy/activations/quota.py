"""Disk space for an activation store: its need, the quota, and changes that make it fit. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mechstudy.activations.config import store_bytes
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import free_text
from mechstudy.models.sites import Site

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40, "pi": 2**50}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?i?)b\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``50GB`` (10^9), ``1.5 TiB`` (2^40) or ``800 MB``.

    Raises:
        MechstudyError: not a size, or zero.
    """
    match = _SIZE.fullmatch(text)
    scale = None if match is None else (_UNITS | _BINARY).get(match[2].lower())
    if match is None or scale is None or not (size := round(float(match[1]) * scale)):
        raise MechstudyError(
            f"{text!r} is not a size", facts={"units": "B kB MB GB TB, or KiB MiB GiB TiB"}, fix="write 50GB"
        )
    return size


@dataclass(frozen=True)
class Quota:
    """A limit on the bytes of all files below a folder."""

    limit: int
    folder: Path

    def used(self, *, finished: bool = False) -> int:
        """Bytes of all files below the folder; ``finished`` leaves out unfinished work (``*.partial``)."""
        total = 0
        for path in self.folder.rglob("*"):
            if finished and any(part.endswith(".partial") for part in path.relative_to(self.folder).parts):
                continue
            with suppress(OSError):  # deleted meanwhile
                total += path.stat().st_size if path.is_file() else 0
        return total

    def left(self, *, finished: bool = False) -> int:
        """Bytes that may still be written."""
        return max(0, self.limit - self.used(finished=finished))


def require_room(
    folder: Path, sites: Mapping[Site, int], n_rows: int, dtype: str, quota: Quota | None, *, corpus: bool = True
) -> None:
    """Checks that the quota has room for a store, or for several in sub-folders.

    Files of an interrupted capture are subtracted from the need.

    Args:
        folder: of the store.
        sites: width of each site.
        n_rows: rows of all stores together.
        dtype: of stored rows.
        quota: the limit; None checks nothing.
        corpus: whether the store is a corpus's, whose size other settings can reduce.

    Raises:
        MechstudyError: there is not enough room; the message has the need, the space left and changes that would fit.
    """
    if quota is None:
        return
    present = sum(path.stat().st_size for path in folder.rglob("*.bin"))
    needed = store_bytes(n_rows, sites.values(), dtype) - present
    if needed > quota.left():
        raise no_room(folder, sites, n_rows, dtype, quota.left() + present, quota, corpus=corpus)


def no_room(
    folder: Path,
    sites: Mapping[Site, int],
    n_rows: int,
    dtype: str,
    available: int,
    quota: Quota | None = None,
    *,
    corpus: bool = True,
) -> MechstudyError:
    """The error for a store that needs more than ``available`` bytes of the disk, or of a quota."""
    needed = store_bytes(n_rows, sites.values(), dtype)
    facts = {"needed": f"{needed:,} bytes", "free": free_text(folder)}
    if quota is not None:
        facts["quota"] = f"{quota.limit:,} bytes (storage.quota), {quota.used():,} used"
    what = "storage.quota leaves" if quota is not None else "the disk has"
    fixes = changes_that_fit(sites, n_rows, dtype, available) if corpus else ["capture.layers or capture.sites: fewer"]
    if quota is None:
        fixes = ["free some disk", *fixes]
    return MechstudyError(
        f"{what} not enough room for the activation store", where=str(folder), facts=facts, fix=", or ".join(fixes)
    )


def changes_that_fit(sites: Mapping[Site, int], n_rows: int, dtype: str, available: int) -> Sequence[str]:
    """Changes of a study, each of which makes the store of its corpus fit into ``available`` bytes."""
    layers: dict[int, list[int]] = {}
    for site, width in sites.items():
        layers.setdefault(site.layer, []).append(width)
    changes = []
    if n := _layers_that_fit(list(layers.values()), n_rows, dtype, available):
        changes.append(f"dictionaries.layers_per_pass: {n} (with storage.retain.capture: discard)")
    small = store_bytes(n_rows, sites.values(), "int8")
    if small <= available:
        changes.append(f"dictionaries.store_dtype: int8 (needs {small:,} bytes)")
    elif not changes and (n := _layers_that_fit(list(layers.values()), n_rows, "int8", available)):
        changes.append(f"dictionaries.store_dtype: int8 with layers_per_pass: {n}")
    return [*changes, "dictionaries.source: stream (needs no disk)"]


def _layers_that_fit(layers: Sequence[Sequence[int]], n_rows: int, dtype: str, available: int) -> int:
    """The largest number of layers, less than all, whose rows fit."""
    for n in range(len(layers) - 1, 0, -1):
        largest = sorted(layers, key=sum)[-n:]
        if store_bytes(n_rows, [width for widths in largest for width in widths], dtype) <= available:
            return n
    return 0
