"""Seconds, timetable and peak memory of units on given hardware."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from mechstudy.core.sizes import ITEM_BYTES
from mechstudy.core.work import Estimate, Held, Work
from mechstudy.planning.calibration import Fit
from mechstudy.planning.hardware import Hardware
from mechstudy.study.dag import Evaluation
from mechstudy.study.unit import Unit

_PRODUCTS = ("forward", "train", "attribute")


@dataclass(frozen=True)
class Seconds:
    """Seconds of one unit: ``work`` scales with the study, ``load`` is loading the model's weights."""

    work: float
    load: float


def seconds_of(estimate: Estimate, hardware: Hardware, loaded: Collection[str] = ()) -> Seconds:
    """A unit's seconds on this hardware; models in ``loaded`` (keys of `held_bytes`) are not loaded again."""
    work = load = 0.0
    for part in estimate.work or (Work("forward", estimate.flops),):
        if part.kind != "load":
            work += work_seconds(part, hardware)
        elif f"model {hardware.resolved(part.dtype, part.width)}" not in loaded:
            load += work_seconds(part, hardware)
    return Seconds(work, load)


def work_seconds(work: Work, hardware: Hardware) -> float:
    """Seconds of one kind of work."""
    dtype = hardware.resolved(work.dtype, work.width)
    if work.kind in _PRODUCTS:
        return work.amount / hardware.rate(work.kind, dtype, work.width) + work.calls * hardware.call_seconds
    if work.kind in ("stream", "sparse"):
        return work.amount / (hardware.memory_bandwidth * hardware.share(work.kind))
    if work.kind == "write":
        return work.amount / hardware.disk_write
    if work.kind == "pages":
        return work.amount * hardware.page_seconds
    amount = work.amount * ITEM_BYTES[dtype] / 4 if work.kind == "load" else work.amount
    return amount / hardware.disk_read


@dataclass(frozen=True)
class Timetable:
    """``seconds`` from the first start to the last end, and the ``most`` units at a time."""

    seconds: float
    most: int


def timetable(
    durations: Mapping[str, float], upstream: Mapping[str, Iterable[str]], width: int | None = None
) -> Timetable:
    """The timetable of units, each run as soon as its inputs exist and one of ``width`` places is free (None: always).

    Args:
        durations: unit -> seconds of the units to run, inputs before consumers.
        upstream: unit -> the units that it waits for; those without a duration are done.
    """
    ends: dict[str, float] = {}
    changes: list[tuple[float, int]] = []  # of the number of running units; at the same time, ends come first
    free: list[float] = [0.0] * (width or 0)
    for name, seconds in durations.items():
        ready = max((ends[source] for source in upstream.get(name, ()) if source in ends), default=0.0)
        start = ready if width is None else max(ready, heapq.heappop(free))
        ends[name] = start + seconds
        changes += [(start, 1), (ends[name], -1)]
        if width is not None:
            heapq.heappush(free, ends[name])
    running = accumulate(change for _, change in sorted(changes))
    return Timetable(max(ends.values(), default=0.0), max(running, default=0))


def held_bytes(estimate: Estimate, hardware: Hardware, precision: str | None = None) -> Mapping[str, int]:
    """Bytes of everything that a unit holds, by name; ``precision`` replaces the model's own.

    A model's name includes its dtype: a model in two precisions is held twice.
    """
    sizes = {}
    for held in estimate.holds:
        dtype, key = _in_memory(held, hardware, precision)
        mapped = hardware.device == "cpu" and dtype == held.stored and held.touched is not None
        sizes[key] = (held.touched if mapped and held.touched is not None else held.count) * ITEM_BYTES[dtype]
    return sizes


@dataclass(frozen=True)
class Peak:
    """Peak bytes of a process; ``file`` of them are pages of a mapped file, which the system can take back."""

    bytes: int
    file: int = 0


def peak_of(
    estimate: Estimate, hardware: Hardware, kept: Mapping[str, int] | None = None, precision: str | None = None
) -> Peak:
    """The peak of a process that runs the unit: what it holds, what it already held (``kept``), and its working set.

    While a CPU converts a model, the file is in memory, too.
    """
    kept, loading = kept or {}, 0
    for held in estimate.holds if hardware.device == "cpu" else ():
        dtype, key = _in_memory(held, hardware, precision)
        if held.name == "model" and dtype != held.stored and key not in kept:
            loading += held.count * ITEM_BYTES[held.stored]
    all_ = together_bytes(kept, held_bytes(estimate, hardware, precision))
    working = estimate.working_bytes
    return Peak(hardware.reserved_bytes + sum(all_.values()) + max(working, loading), max(0, loading - working))


def kind_of(unit: Unit) -> str:
    """The kind whose pilots calibrate the unit."""
    return unit.phase.calibrated_as or unit.phase.kind


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak: in the study's own precisions, with the model all in float32, and all in bfloat16.

    ``file`` bytes of the peak are pages of a mapped file, which the system takes back when memory is short.
    """

    peak: int
    float32: int
    bfloat16: int
    file: int = 0

    @property
    def least(self) -> int:
        """Bytes that the unit cannot run without."""
        return self.peak - self.file

    @staticmethod
    def largest(parts: Sequence[Footprint]) -> Footprint:
        """The largest value of each field."""
        peaks = zip(*((part.peak, part.float32, part.bfloat16) for part in parts), strict=True)
        return Footprint(*(map(max, peaks) if parts else (0, 0, 0)))


def footprints(
    evaluation: Evaluation,
    hardware: Hardware,
    fits: Mapping[str, Fit],
    *,
    together: bool,
    processes: Mapping[str, int],
) -> dict[str, Footprint]:
    """The footprint of every unit, with all processes that share it.

    Every process that shares a unit loads the model for itself; pages of a mapped file are counted for each, as a
    cluster's accounting does. On GPUs each has its own, and memory is one GPU's.

    Args:
        together: units run one after another in the same processes, which keep models and dictionaries loaded.
        processes: unit -> number of processes that share it; one where it is not listed.
    """
    kept: dict[str | None, dict[str, int]] = {None: {}, "float32": {}, "bfloat16": {}}
    helped: dict[str | None, dict[str, int]] = {None: {}, "float32": {}, "bfloat16": {}}
    idle = 0  # processes that shared an earlier unit and wait
    result = {}
    for name, node in evaluation.nodes.items():
        estimate = node.unit.estimate
        extra = fits[kind].extra_bytes if (kind := kind_of(node.unit)) in fits else 0
        n = 0 if hardware.device == "cuda" else processes.get(name, 1) - 1
        peaks, files = [], []
        for precision in kept:
            before, theirs = kept[precision], helped[precision]
            leader, helper = (peak_of(estimate, hardware, held, precision) for held in (before, theirs))
            waiting = idle * (hardware.reserved_bytes + sum(theirs.values()))
            helpers = n * max(0, helper.bytes + extra) if n else waiting
            peaks.append(max(0, leader.bytes + extra) + helpers)
            files.append(leader.file + n * helper.file)
            if together and node.must_run:
                own = held_bytes(estimate, hardware, precision)
                kept[precision] = together_bytes(before, own)
                models = {key: size for key, size in own.items() if key.startswith("model ")}
                helped[precision] = together_bytes(theirs, models if n else {})
        if together and node.must_run:
            idle = max(idle, n)
        result[name] = Footprint(peaks[0], peaks[1], peaks[2], files[0])
    return result


def _in_memory(held: Held, hardware: Hardware, precision: str | None) -> tuple[str, str]:
    """The dtype in memory, and the name in `held_bytes`."""
    dtype = precision if precision is not None and held.name == "model" else hardware.resolved(held.dtype)
    return dtype, f"{held.name} {dtype}" if held.name == "model" else held.name


def together_bytes(before: Mapping[str, int], own: Mapping[str, int]) -> dict[str, int]:
    """What a process holds that held ``before`` and now also ``own``: the larger size of each."""
    return {key: max(before.get(key, 0), own.get(key, 0)) for key in {**before, **own}}
