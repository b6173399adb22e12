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
_MOST_POINTS = 20_000


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
    course, end = Course(), threading.Event()
    thread = threading.Thread(target=_follow, args=(course, end), daemon=True, name="memory")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(timeout=10)
        files = write_snapshot(unit, runtime.device, folder, course, "as asked")
        if cuda:
            torch.cuda.memory._record_memory_history(enabled=None)
        runtime.progress.log(f"memory: {' and '.join(map(str, files))}")


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
    if device.startswith("cuda"):
        import torch

        taken, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        lines.append(f"  on the GPU: {human(taken)} allocated at most, {human(reserved)} reserved")
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


def _bars(course: Course) -> list[str]:
    stride = -(-len(course.points) // _COURSE)
    windows = [course.points[i : i + stride] for i in range(0, len(course.points), stride)]
    lines = []
    for window in windows:
        top = max(rss for _, rss in window)
        lines.append(f"  {window[0][0]:8.1f} s  {human(top):>9}  {'#' * round(50 * top / max(1, course.peak))}")
    return lines


def _follow(course: Course, end: threading.Event) -> None:
    """Follows resident memory, and lists the tensors whenever it is clearly higher than before."""
    process, began, listed_at, ended = psutil.Process(), time.monotonic(), 0, False
    while not ended:
        ended = end.wait(_POLL)
        rss, t = int(process.memory_info().rss), time.monotonic() - began
        course.points.append((t, rss))
        if len(course.points) > _MOST_POINTS:
            pairs = zip(course.points[::2], course.points[1::2], strict=False)
            course.points = [max(pair, key=lambda point: point[1]) for pair in pairs]
        if rss > course.peak:
            course.peak, course.peak_at = rss, t
        if rss > _GROWTH * listed_at:
            listed_at, course.tensors = rss, live_tensors()
