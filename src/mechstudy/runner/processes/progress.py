"""One bar for all ranks: each helper writes how far it is, the leader adds them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import Bar, Progress

FILE = "progress.json"
LOOK_EVERY = 0.2  # seconds between looks at the helpers


class HelperProgress(Progress):
    """Writes the file the leader reads, and passes on messages; draws nothing."""

    def _begin(self, bar: Bar) -> None:
        self._write_file(bar, force=True)

    def _advanced(self, bar: Bar, now: float) -> None:
        self._write_file(bar)

    def _end(self, bar: Bar) -> None:
        self._write_file(bar, force=True)


class LeaderProgress(Progress):
    """The leader's. While others help, a bar counts what all ranks have done, and is ended when all have.

    Between `follow` and `settle` it looks after the helpers whenever a bar is advanced.
    """

    def __init__(self, folder: Path, **how: Any) -> None:
        super().__init__(folder, **how)
        self._watch: Callable[[], None] | None = None
        self._helpers: Sequence[Path] = ()
        self._looked = float("-inf")
        self._own: Bar | None = None
        self._all: Bar | None = None

    def follow(self, helpers: Sequence[Path], watch: Callable[[], None]) -> None:
        """From now on add what the helpers' folders say. ``watch`` raises where one of them failed."""
        for folder in helpers:
            (folder / FILE).unlink(missing_ok=True)
        self._helpers, self._watch = helpers, watch

    def settle(self) -> None:
        """Ends the bar that is still open; from now on bars are this process' own."""
        if self._all is not None:
            self._count()
            super()._end(self._all)
        self._own = self._all = self._watch = None

    def look(self, *, now: bool = False) -> None:
        """Looks after the helpers, at most every 0.2 s unless ``now``."""
        if self._watch is None or (not now and self._clock() - self._looked < LOOK_EVERY):
            return
        self._looked = self._clock()
        self._watch()
        self._count()

    def _begin(self, bar: Bar) -> None:
        if self._watch is None:
            super()._begin(bar)
            return
        if self._all is not None:
            super()._end(self._all)
        self._own = bar
        done, total = self._sums(bar)
        self._all = Bar(self, bar.label, total, bar.unit, done, stops=False)
        super()._begin(self._all)

    def _advanced(self, bar: Bar, now: float) -> None:
        if bar is self._own:
            self.look()
        else:
            super()._advanced(bar, now)

    def _end(self, bar: Bar) -> None:
        if bar is not self._own:
            super()._end(bar)

    def _count(self) -> None:
        if self._own is None or self._all is None:
            return
        done, self._all.total = self._sums(self._own)
        self._all.advance(max(0, done - self._all.done), **self._own.info)

    def _sums(self, bar: Bar) -> tuple[int, int | None]:
        """Done and total of all ranks that are at the work of this bar."""
        done, total = bar.done, bar.total
        for folder in self._helpers:
            with suppress(MechstudyError, KeyError, TypeError):
                found = read_json(folder / FILE)
                if found["label"] == bar.label:
                    done += found["done"]
                    total = None if total is None or found["total"] is None else total + found["total"]
        return done, total
