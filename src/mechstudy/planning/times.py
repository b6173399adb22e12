"""Seconds and memory of work on given hardware: FLOPs over rates, bytes over bandwidth, launches and loading."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mechstudy.core.sizes import ITEM_BYTES
from mechstudy.core.work import Estimate, Held, Work
from mechstudy.planning.hardware import Hardware
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
    for part in estimate.work or _plain(estimate):
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


def _in_memory(held: Held, hardware: Hardware, precision: str | None) -> tuple[str, str]:
    """The dtype in memory, and the name in `held_bytes`."""
    dtype = precision if precision is not None and held.name == "model" else hardware.resolved(held.dtype)
    return dtype, f"{held.name} {dtype}" if held.name == "model" else held.name


def together_bytes(before: Mapping[str, int], own: Mapping[str, int]) -> dict[str, int]:
    """What a process holds that held ``before`` and now also ``own``: the larger size of each."""
    return {key: max(before.get(key, 0), own.get(key, 0)) for key in {**before, **own}}


def kind_of(unit: Unit) -> str:
    """The kind whose pilots calibrate the unit."""
    return unit.phase.calibrated_as or unit.phase.kind


def _plain(estimate: Estimate) -> tuple[Work, ...]:
    return (Work("forward", estimate.flops),) if estimate.flops else ()
