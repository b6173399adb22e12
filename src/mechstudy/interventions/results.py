"""The table of samples on disk: saved part by part, so that what is finished is never computed again.

Part ``N`` holds the samples ``(N-1) x size`` to ``N x size - 1`` of the fixed sample list, and appears whole or
not at all. `results.csv` is the parts, one after another.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path

COLUMNS = (
    "sample", "kind", "item", "group", "role", "draw", "alpha", "prompt_id", "cluster", "n_edits",
    "clean", "corrupted", "metric", "value", "kl",
)  # fmt: skip
Cell = str | int | float | None


class PartialResults:
    """Rows in the order of the sample list; every ``size`` of them become a file."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        folder.mkdir(parents=True, exist_ok=True)
        self._parts = 0
        while self.part(self._parts + 1).exists():
            self._check(self._parts + 1)
            self._parts += 1
        self._waiting: list[str] = []

    def part(self, number: int) -> Path:
        """``results_partial_N.csv``, N from 1."""
        return self.folder / f"results_partial_{number}.csv"

    @property
    def n_saved(self) -> int:
        """Samples in files; a last part may hold fewer than ``size``."""
        if not self._parts:
            return 0
        return (self._parts - 1) * self.size + len(self._lines(self._parts))

    def append(self, row: Sequence[Cell]) -> None:
        """Add the next sample; floats are written so that reading gives the same bits."""
        assert len(row) == len(COLUMNS), row
        assert row[0] == self._parts * self.size + len(self._waiting), (row[0], self._parts, len(self._waiting))
        self._waiting.append(csv_line(row))
        if len(self._waiting) == self.size:
            self._write()

    def finish(self) -> Path:
        """Save the rest and write results.csv."""
        if self._waiting:
            self._write()
        path = self.folder / "results.csv"
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
            out.write(csv_line(COLUMNS))
            for number in range(1, self._parts + 1):
                out.writelines(self._lines(number))
        return path

    def _write(self) -> None:
        with atomic_path(self.part(self._parts + 1)) as temporary:
            temporary.write_text(csv_line(COLUMNS) + "".join(self._waiting), encoding="utf-8", newline="")
        self._parts += 1
        self._waiting = []

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
    """A whole table, atomically."""
    with atomic_path(path) as temporary:
        text = csv_line(columns) + "".join(csv_line(row) for row in rows)
        temporary.write_text(text, encoding="utf-8", newline="")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table as text, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
