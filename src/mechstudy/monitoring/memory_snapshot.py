"""``--memory-snapshot``: the content of memory at its peak, also written whenever memory runs out.

On a GPU it is torch's own snapshot (https://docs.pytorch.org/memory_viz reads it, offline too). On a CPU, where torch
keeps no such record, it is the tensors alive at the peak, by shape, and the course of resident memory.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mechstudy.core.files import disk_errors
from mechstudy.core.sizes import human
from mechstudy.machine.memory import available_memory_bytes
from mechstudy.machine.runtime import Runtime
from mechstudy.store.manifest import slug

_HISTORY = 200_000  # allocations that torch remembers, each with its stack
_POLL = 0.05
_GROWTH = 1.05  # tensors are listed again at a peak higher by this factor: that visits all of Python's objects
_ROWS = 25
_COURSE = 60  # lines


@dataclass(frozen=True)
class Tensors:
    """Live tensors of one shape, dtype and device that share no storage, with their total bytes."""

    count: int
    bytes: int
    what: str


@dataclass
class Course:
    """Resident memory over time, and the tensors at its peak."""

    points: list[tuple[float, int]] = field(default_factory=list)  # seconds, bytes
    peak: int = 0
    peak_at: float = 0.0
    tensors: Sequence[Tensors] = ()


def live_tensors() -> list[Tensors]:
    """Every tensor that Python can reach, largest first; one storage counts once. Empty where torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    counted: set[tuple[str, int]] = set()
    groups: dict[str, list[int]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated attributes of other libraries' objects
        for item in gc.get_objects():
            with suppress(Exception):  # a proxy, a tensor without storage
                if not issubclass(type(item), torch.Tensor) or item.device.type == "meta":
                    continue
                storage = item.untyped_storage()
                key = (str(item.device), storage.data_ptr())
                if key in counted or not storage.nbytes():
                    continue
                counted.add(key)
                dtype = str(item.dtype).removeprefix("torch.")
                grad = ", a parameter" if isinstance(item, torch.nn.Parameter) else ""
                groups.setdefault(f"{dtype} {list(item.shape)} on {item.device}{grad}", []).append(storage.nbytes())
    tensors = [Tensors(len(sizes), sum(sizes), what) for what, sizes in groups.items()]
    return sorted(tensors, key=lambda group: -group.bytes)


@contextmanager
def snapshotted(unit: str, runtime: Runtime, folder: Path) -> Iterator[None]:
    """Records memory inside the block and writes ``<folder>/<unit>.memory.txt``, on a GPU ``.memory.pickle`` too."""
    cuda = runtime.device.startswith("cuda")
    if cuda:
        import torch

        torch.cuda.memory._record_memory_history(max_entries=_HISTORY)
    watch = _Watch()
    try:
        yield
    finally:
        course = watch.stop()
        files = write_snapshot(unit, runtime.device, folder, course, "as asked")
        if cuda:
            torch.cuda.memory._record_memory_history(enabled=None)
        runtime.progress.log(f"memory: {' and '.join(map(str, files))}")


def on_out_of_memory(unit: str, runtime: Runtime, folder: Path, reason: str) -> None:
    """Writes what is in memory now. Call it while the failed work's tensors are alive. Never raises."""
    try:
        now = Course(tensors=live_tensors())
        files = write_snapshot(unit, runtime.device, folder, now, f"memory ran out: {reason}")
        runtime.progress.log(f"out of memory; what was in it: {' and '.join(map(str, files))}")
    except Exception as error:
        runtime.progress.log(f"out of memory, and no snapshot of it: {type(error).__name__}: {error}")


def write_snapshot(unit: str, device: str, folder: Path, course: Course, why: str) -> list[Path]:
    """Writes the files, and returns their paths."""
    files = [folder / f"{slug(unit)}.memory.txt"]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if device.startswith("cuda"):
            import torch

            files.append(folder / f"{slug(unit)}.memory.pickle")  # the format of torch's viewer
            torch.cuda.memory._dump_snapshot(str(files[1]))  # type: ignore[no-untyped-call]
        files[0].write_text(describe(unit, device, course, why), encoding="utf-8")
    return files


def describe(unit: str, device: str, course: Course, why: str) -> str:
    """The text of ``.memory.txt``."""
    lines = [f"{unit} on {device}: {why}", f"  available now: {human(available_memory_bytes())}"]
    if course.points:
        lines.append(f"  resident at its peak: {human(course.peak)}, after {course.peak_at:.1f} s")
    lines += _gpu_lines(device)
    total = sum(tensors.bytes for tensors in course.tensors)
    when = "at the peak" if course.points else "now"
    lines += ["", f"Tensors alive {when}: {human(total)} (those that only torch itself holds are not seen)"]
    for tensors in course.tensors[:_ROWS]:
        lines.append(f"  {human(tensors.bytes):>9}  {tensors.count:6,} x {tensors.what}")
    if len(course.tensors) > _ROWS:
        rest = sum(tensors.bytes for tensors in course.tensors[_ROWS:])
        lines.append(f"  {human(rest):>9}  in {len(course.tensors) - _ROWS} other shapes")
    if course.points:
        lines += ["", "Resident memory over time", *_bars(course)]
    return "\n".join(lines) + "\n"


def _gpu_lines(device: str) -> list[str]:
    if not device.startswith("cuda"):
        return []
    import torch

    taken, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return [f"  on the GPU: {human(taken)} allocated at most, {human(reserved)} reserved"]


def _bars(course: Course) -> list[str]:
    stride = -(-len(course.points) // _COURSE)
    windows = [course.points[i : i + stride] for i in range(0, len(course.points), stride)]
    lines = []
    for window in windows:
        top = max(rss for _, rss in window)
        lines.append(f"  {window[0][0]:8.1f} s  {human(top):>9}  {'#' * round(50 * top / max(1, course.peak))}")
    return lines


class _Watch:
    """A thread that follows resident memory, and lists the tensors whenever it is clearly higher than before."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="memory")
        self._course = Course()
        self._listed_at = 0
        self._began = time.monotonic()
        self._thread.start()

    def stop(self) -> Course:
        self._end.set()
        self._thread.join(timeout=10)
        return self._course

    def _work(self) -> None:
        while True:
            ended = self._end.wait(_POLL)
            self._look()
            if ended:
                return

    def _look(self) -> None:
        rss, t = int(self._process.memory_info().rss), time.monotonic() - self._began
        course = self._course
        course.points.append((t, rss))
        if len(course.points) > 20_000:
            course.points = [
                max(pair, key=lambda p: p[1]) for pair in zip(course.points[::2], course.points[1::2], strict=False)
            ]
        if rss > course.peak:
            course.peak, course.peak_at = rss, t
        if rss > _GROWTH * self._listed_at:
            self._listed_at, course.tensors = rss, live_tensors()
