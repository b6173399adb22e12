"""Progress: a bar on a terminal, plain lines elsewhere, and the file that `status` reads."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import write_json_atomic
from mechstudy.core.signals import stop_if_requested

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

FILE_EVERY = 1.0  # seconds between writes of progress.json
LINE_EVERY = 30.0  # seconds between plain lines
_RATE_WINDOW = 60.0  # seconds the rate is measured over


class Bar:
    """One counted piece of work. Created by `Progress.bar`."""

    def __init__(
        self, progress: Progress, label: str, total: int | None, unit: str, done: int, stops: bool = True
    ) -> None:
        self.stops = stops
        self.label = label
        self.total = total
        self.unit = unit
        self.done = done
        self.info: dict[str, Any] = {}
        self._progress = progress
        self._samples: deque[tuple[float, int]] = deque([(progress._clock(), done)])

    def advance(self, n: int = 1, **info: Any) -> None:
        """Counts ``n`` more done; ``info`` (a loss, an L0) is shown and written beside the count.

        Call it once their results are kept: where a stop was requested it raises `signals.Stopped`.
        """
        self.done += n
        if info:
            self.info = info
        now = self._progress._clock()
        if now - self._samples[-1][0] >= FILE_EVERY or len(self._samples) == 1:
            self._samples.append((now, self.done))
            while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW:
                self._samples.popleft()
        self._progress._advanced(self, now)
        if self._progress.on_advance is not None:
            self._progress.on_advance()
        if self.stops:
            stop_if_requested()

    @property
    def rate(self) -> float | None:
        """Units per second over the last minute; None before there is anything to measure."""
        then, before = self._samples[0]
        seconds = self._progress._clock() - then
        return (self.done - before) / seconds if seconds > 0 and self.done > before else None

    @property
    def eta(self) -> float | None:
        """Seconds left at the present rate."""
        rate = self.rate
        return max(0, self.total - self.done) / rate if rate and self.total is not None else None

    def text(self) -> str:
        """The plain line: ``training 300/1,000 steps, 25 steps/s, 28s left, loss=0.31``."""
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{self.label} {count} {self.unit}".rstrip()]
        rate = self.rate
        if rate is not None:
            parts.append(f"{rate:,.3g} {self.unit}/s" if rate < 1000 else f"{rate:,.0f} {self.unit}/s")
        if self.eta:
            parts.append(f"{duration(self.eta)} left")
        return ", ".join([*parts, *self.info_texts()])

    def info_texts(self) -> list[str]:
        """``key=value`` of the latest info, floats to four digits."""
        return [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.info.items()]


class Progress:
    """Reports a unit's progress to a terminal and a file.

    ``on_advance``, where set, is called whenever a bar advances.
    Failing writes of the progress or log file are ignored: they must not stop a run.

    Args:
        folder: takes ``progress.json``, written at most once a second; None writes none.
        phase: of the DAG; written into the file.
        unit: of the DAG; written into the file and before each line.
        stream: takes the lines (standard error). On a terminal a rich bar is drawn instead.
        log_file: also takes every message and line, with the time before it.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        phase: str = "",
        unit: str = "",
        stream: TextIO | None = None,
        log_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.phase = phase
        self.unit = unit
        self.log_file = log_file
        self.on_advance: Callable[[], None] | None = None
        self._stream = stream
        self._clock = clock
        self._file_written = float("-inf")
        self._line_written = clock()
        self._rich: RichProgress | None = None
        self._rich_tasks: dict[int, Any] = {}

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str = "", *, done: int = 0, stops: bool = True) -> Iterator[Bar]:
        """A bar for ``total`` units of work (None: unknown), ``done`` of them by an earlier run.

        With ``stops=False`` the loop handles requests to stop itself (`core.signals`).
        """
        bar = Bar(self, label, total, unit, done, stops)
        self._begin(bar)
        try:
            yield bar
        finally:
            self._end(bar)

    def log(self, message: str) -> None:
        """Prints a message above the bar and keeps it in the log file."""
        text = f"{self.unit or self.phase}: {message}" if self.unit or self.phase else message
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._out, flush=True)
        self._append_log(text)

    @property
    def _out(self) -> TextIO:
        return self._stream if self._stream is not None else sys.stderr

    def _begin(self, bar: Bar) -> None:
        self._line_written = self._clock()
        if self._out.isatty():
            if self._rich is None:
                self._rich = _rich_progress(self._out)
                self._rich.start()
            prefix = f"{self.unit}: " if self.unit else ""
            self._rich_tasks[id(bar)] = self._rich.add_task(
                prefix + bar.label, total=bar.total, completed=bar.done, unit=bar.unit, info=""
            )
        self._write_file(bar, force=True)

    def _advanced(self, bar: Bar, now: float) -> None:
        if self._rich is not None:
            info = " ".join(bar.info_texts())
            self._rich.update(self._rich_tasks[id(bar)], completed=bar.done, total=bar.total, info=info)
        elif now - self._line_written >= LINE_EVERY and bar.done != bar.total:  # `_end` logs the last one
            self._line_written = now
            self.log(bar.text())
        self._write_file(bar)

    def _end(self, bar: Bar) -> None:
        self._write_file(bar, force=True)
        if self._rich is not None:
            self._rich_tasks.pop(id(bar))
            if not self._rich_tasks:
                self._rich.stop()
                self._rich = None
            self._append_log(bar.text())
        else:
            self.log(bar.text())

    def _write_file(self, bar: Bar, *, force: bool = False) -> None:
        now = self._clock()
        if self.folder is None or (not force and now - self._file_written < FILE_EVERY):
            return
        self._file_written = now
        content = {
            "phase": self.phase,
            "unit": self.unit,
            "label": bar.label,
            "done": bar.done,
            "total": bar.total,
            "counts": bar.unit,
            "rate": bar.rate,
            "eta": bar.eta,
            "info": bar.info_texts(),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with suppress(OSError, MechstudyError):
            write_json_atomic(self.folder / "progress.json", content)

    def _append_log(self, text: str) -> None:
        if self.log_file is None:
            return
        with suppress(OSError):
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("a") as log:
                log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")


class NullProgress(Progress):
    """Shows and writes nothing; keeps the messages in ``messages`` for tests to read."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def log(self, message: str) -> None:
        """Keeps the message."""
        self.messages.append(message)

    def _begin(self, bar: Bar) -> None:
        pass

    def _advanced(self, bar: Bar, now: float) -> None:
        pass

    def _end(self, bar: Bar) -> None:
        pass


def duration(seconds: float) -> str:
    """``42s``, ``3m05s``, ``2h07m``, ``1d04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _rich_progress(out: TextIO) -> RichProgress:
    from rich import progress as rich
    from rich.console import Console

    return rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[unit]}", markup=False),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[info]}", markup=False),
        console=Console(file=out),
    )
