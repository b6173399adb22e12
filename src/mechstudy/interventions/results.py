"""Tables of samples on disk, saved part by part, so that a killed run computes no finished part twice."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path

COLUMNS = (
    "sample", "kind", "item", "group", "role", "draw", "alpha", "prompt_id", "cluster", "n_edits",
    "clean", "corrupted", "metric", "value", "kl",
)  # fmt: skip
SHARES = ("tokens_answer", "tokens_wrong")
"""Changes of the log-probability of each token of the right and the wrong answer, as numbers with spaces."""
Cell = str | int | float | None


EDGES_MEASURED = ("frozen", "qk", "direct_live", "total_live")
"""What is measured of an edge (`edge_effects`)."""


class PartialTable:
    """Rows in the order of the sample list; every ``size`` of them become a file.

    Part ``N`` (``{name}_partial_N.csv``, N from 1) holds the samples ``(N-1) x size`` to ``N x size - 1`` and appears
    whole or not at all. The first column is the sample's number.
    """

    def __init__(self, folder: Path, name: str, columns: Sequence[str], size: int) -> None:
        self.folder, self.name, self.columns, self.size = folder, name, tuple(columns), size
        folder.mkdir(parents=True, exist_ok=True)
        self._n_parts = 0
        while self.part(self._n_parts + 1).exists():
            self._check(self._n_parts + 1)
            self._n_parts += 1
        self._waiting: list[str] = []

    def part(self, number: int) -> Path:
        """The file of one part, saved or not."""
        return self.folder / f"{self.name}_partial_{number}.csv"

    @property
    def n_saved(self) -> int:
        """Number of samples in files; a last part may hold fewer than ``size``."""
        if not self._n_parts:
            return 0
        return (self._n_parts - 1) * self.size + len(self._lines(self._n_parts))

    @property
    def is_complete(self) -> bool:
        """Whether the last part is a shorter one, which is written only once every sample has been measured."""
        return self.n_saved % self.size != 0

    def append(self, row: Sequence[Cell]) -> None:
        """Add the next sample; floats are written so that reading gives the same bits."""
        assert len(row) == len(self.columns), row
        assert row[0] == self._n_parts * self.size + len(self._waiting), (row[0], self._n_parts, len(self._waiting))
        self._waiting.append(csv_line(row))
        if len(self._waiting) == self.size:
            self.save()

    def save(self) -> None:
        """Write the samples that no part holds yet, if there are any."""
        if not self._waiting:
            return
        with atomic_path(self.part(self._n_parts + 1)) as temporary:
            temporary.write_text(csv_line(self.columns) + "".join(self._waiting), encoding="utf-8", newline="")
        self._n_parts += 1
        self._waiting = []

    def join(self) -> Path:
        """Write all parts, one after another, as ``{name}.csv``."""
        path = self.folder / f"{self.name}.csv"
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
            out.write(csv_line(self.columns))
            for number in range(1, self._n_parts + 1):
                out.writelines(self._lines(number))
        return path

    def rows(self) -> list[dict[str, str]]:
        """The saved samples, as text by column."""
        return [row for number in range(1, self._n_parts + 1) for row in read_csv(self.part(number))]

    def delete_parts(self) -> None:
        """Delete the parts, last first, so that those left at any moment are a valid beginning."""
        for number in range(self._n_parts, 0, -1):
            self.part(number).unlink()
        self._n_parts = 0

    def _lines(self, number: int) -> list[str]:
        with self.part(number).open(encoding="utf-8", newline="") as file:
            return list(file)[1:]

    def _check(self, number: int) -> None:
        path = self.part(number)
        rows = read_csv(path)
        first = (number - 1) * self.size
        whole = len(rows) == self.size or (0 < len(rows) < self.size and not self.part(number + 1).exists())
        if not whole or [r.get("sample") for r in rows] != [str(first + i) for i in range(len(rows))]:
            raise MechstudyError(
                "saved results do not fit the sample list", where=str(path), fix="delete this file and run again"
            )


def csv_line(row: Sequence[Cell]) -> str:
    """One line of CSV: None is empty, floats by `repr`, so that they read back exactly."""
    buffer = io.StringIO(newline="")
    cells = ["" if c is None else repr(float(c)) if isinstance(c, float) else c for c in row]
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Write a whole table atomically."""
    with atomic_path(path) as temporary:
        text = csv_line(columns) + "".join(csv_line(row) for row in rows)
        temporary.write_text(text, encoding="utf-8", newline="")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table as text, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def edges_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The ``edges`` entry of summary.json with the rows of both kinds in one list; empty without edges.

    Every row has its ``kind``. Earlier versions had value edges alone, and called ``total_live`` ``live``.
    """
    entry = dict(summary.get("edges") or {})
    if not entry:
        return {}
    rows = [{"kind": "value", **row} for row in entry.get("rows") or []]
    rows += [{"kind": "qk", **row} for row in (entry.get("qk") or {}).get("rows") or []]
    entry["rows"] = [_renamed(row) for row in rows]
    return _renamed(entry)


def _renamed(entry: Mapping[str, Any]) -> dict[str, Any]:
    now = {"live": "total_live", "live_ci95": "total_live_ci95", "live_ci95_missing": "total_live_ci95_missing"}
    now["spearman_live"] = "spearman_total_live"
    return {now.get(name, name): value for name, value in entry.items()}
