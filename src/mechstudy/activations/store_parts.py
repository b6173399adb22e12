"""Stores written by several processes: the rows of each writer, and the parts that are merged at the end.

All writers write to the same files. The place of a row does not depend on its writer, so the files have the same bytes
for any number of processes. Each writer has whole chunks of whole windows (`WindowedShuffle`), and sums are kept by
chunk (`statistics`), so the statistics are the same bits too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.store.checkpoint import load_checkpoint, save_checkpoint

MAX_CHUNKS = 128
_PART = re.compile(r"part-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class Shares:
    """A store's rows in at most 128 chunks of whole windows, assigned to writers in order."""

    n_rows: int
    window: int

    @property
    def n_windows(self) -> int:
        """Windows of the shuffle."""
        return -(-self.n_rows // self.window)

    @property
    def n_chunks(self) -> int:
        """Chunks of whole windows."""
        return min(MAX_CHUNKS, self.n_windows)

    def rows(self, rank: int, n_writers: int) -> tuple[int, int]:
        """First row of a writer, and the row after its last; they are equal if the writer has no rows."""
        assert 0 <= rank < n_writers, (rank, n_writers)
        first, last = (self._first_row(r * self.n_chunks // n_writers) for r in (rank, rank + 1))
        return first, last

    def chunk_of(self, row: int) -> int:
        """The chunk of a row."""
        return ((row // self.window + 1) * self.n_chunks - 1) // self.n_windows

    def _first_row(self, chunk: int) -> int:
        return min(self.n_rows, chunk * self.n_windows // self.n_chunks * self.window)


@dataclass(frozen=True)
class Part:
    """The result of one of several writers: its rows, the header of the store, and its statistics."""

    file: Path
    rows: tuple[int, int]
    header: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def part_file(folder: Path, rank: int, n_writers: int) -> Path:
    """The file of a writer's part."""
    return folder / f"part-{rank}-of-{n_writers}.safetensors"


def write_part(
    folder: Path, rank: int, n_writers: int, rows: tuple[int, int], header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> Path:  # fmt: skip
    """Writes a writer's part into the store's folder, atomically."""
    file = part_file(folder, rank, n_writers)
    save_checkpoint(file, tensors, {"rows": list(rows), "header": dict(header)})
    return file


def read_parts(folder: Path) -> list[Part]:
    """The parts of all writers, in order.

    Raises:
        MechstudyError: there are none, one is missing, two overlap, or they belong to different stores.
    """
    names = {file.name: match for file in sorted(folder.glob("part-*")) if (match := _PART.fullmatch(file.name))}
    counts = sorted({int(match[2]) for match in names.values()})
    fix = "run the capture again: finished parts are kept"
    if not counts:
        raise MechstudyError("no writer has finished its part of the activation store", where=str(folder), fix=fix)
    if len(counts) > 1:
        raise MechstudyError(
            f"the folder holds parts of {counts[0]} and of {counts[1]} writers",
            where=str(folder),
            facts={"parts": ", ".join(names)},
            fix="delete those of the earlier capture",
        )
    names_of_all = [part_file(folder, rank, counts[0]).name for rank in range(counts[0])]
    if missing := [name for name in names_of_all if name not in names]:
        what = f"{len(missing)} of {counts[0]} parts of the activation store are missing"
        raise MechstudyError(what, where=str(folder), facts={"missing": ", ".join(missing)}, fix=fix)
    parts = [_read_part(folder / name) for name in names_of_all]
    _check_parts(parts)
    return parts


def remove_parts(folder: Path) -> None:
    """Deletes the parts, once they have been merged."""
    for file in folder.glob("part-*"):
        if _PART.fullmatch(file.name):
            file.unlink()


def _read_part(file: Path) -> Part:
    loaded = load_checkpoint(file)
    assert loaded is not None, file
    tensors, state = loaded
    first, last = state["rows"]
    return Part(file, (first, last), state["header"], tensors)


def _check_parts(parts: list[Part]) -> None:
    header, end = parts[0].header, 0
    for before, part in zip([None, *parts], parts, strict=False):
        if part.header != header:
            facts = {key: f"{value} here, {header[key]} in {parts[0].file.name}"
                     for key, value in part.header.items() if value != header[key]}  # fmt: skip
            raise MechstudyError(
                f"{part.file.name} belongs to another activation store", where=str(part.file.parent), facts=facts,
                fix="delete the parts and capture again",
            )  # fmt: skip
        first, last = part.rows
        if first != end:
            name = before.file.name if before else "the first row"
            what = f"{part.file.name} overlaps {name}" if first < end else f"rows are missing before {part.file.name}"
            facts = {"it begins": f"at row {first:,}", "rows so far": f"{end:,}"}
            raise MechstudyError(
                what, where=str(part.file.parent), facts=facts, fix="delete the parts and capture again"
            )
        end = last
    if end != header["n_rows"]:
        raise MechstudyError(
            f"rows are missing after {parts[-1].file.name}",
            where=str(parts[-1].file.parent),
            facts={"rows": f"{header['n_rows']:,}", "written": f"{end:,}"},
            fix="delete the parts and capture again",
        )
