"""One bar for all ranks: each worker writes its progress to a file, and the leader adds them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import Bar, Progress

FILE = "progress.json"
LOOK_EVERY = 0.2  # seconds between looks at the workers


class WorkerProgress(Progress):
    """Writes the file that the leader reads, and prints messages; draws nothing."""

    def _begin(self, bar: Bar) -> None:
        self._write_file(bar, force=True)

    def _advanced(self, bar: Bar, now: float) -> None:
        self._write_file(bar)

    def _end(self, bar: Bar) -> None:
        self._write_file(bar, force=True)


class LeaderProgress(Progress):
    """The leader's progress: between `follow` and `settle` a bar counts what all ranks have done.

    It checks the workers whenever the bar advances.
    """

    def __init__(self, folder: Path, **how: Any) -> None:
        super().__init__(folder, **how)
        self._watch: Callable[[], None] | None = None
        self._folders: Sequence[Path] = ()
        self._looked = float("-inf")
        self._own: Bar | None = None
        self._all: Bar | None = None

    def follow(self, folders: Sequence[Path], watch: Callable[[], None]) -> None:
        """Adds the progress in the workers' folders from now on. ``watch`` raises where a worker failed."""
        for folder in folders:
            (folder / FILE).unlink(missing_ok=True)
        self._folders, self._watch = folders, watch

    def settle(self) -> None:
        """Ends the open bar; from now on bars count this process alone."""
        if self._all is not None:
            self._count()
            super()._end(self._all)
        self._own = self._all = self._watch = None

    def look(self, *, now: bool = False) -> None:
        """Checks the workers, at most every 0.2 s unless ``now``."""
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
        """Done and total of all ranks whose bar has the same label."""
        done, total = bar.done, bar.total
        for folder in self._folders:
            with suppress(MechstudyError, KeyError, TypeError):
                other = read_json(folder / FILE)
                if other["label"] == bar.label:
                    done += other["done"]
                    total = None if total is None or other["total"] is None else total + other["total"]
        return done, total
