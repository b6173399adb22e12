"""Corrections of the time and memory model from short pilots on the target machine, kept in ``<run>/validate.json``.

Per kind of unit: seconds = once + fixed + factor x modelled seconds. ``once`` is paid by the first unit of a kind in a
process (imports, compiled kernels), ``fixed`` by every one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.machine.cache import machine_id

FILE = "validate.json"
_T90 = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)  # Student's t, 90% two-sided, by degrees of freedom
LEAST_SPREAD = 0.10  # of any interval: a machine differs from itself by as much
_UNREPEATED = 0.25
_LONGER = 1.25  # a pilot whose modelled seconds are this many times another's separates slope from constant
_NOTHING = 0.05  # modelled seconds below which the model does not explain a unit's time


@dataclass(frozen=True)
class Pilot:
    """A unit that was run to calibrate its kind.

    ``modelled`` are the model's seconds without loading, ``planned_bytes`` the plan's memory. ``first`` is true of the
    first unit of its kind in the process.
    """

    kind: str
    unit: str
    seconds: float
    modelled: float
    peak_bytes: int
    planned_bytes: int
    loading: float = 0.0
    first: bool = False


@dataclass(frozen=True)
class Fit:
    """The fit of one kind, from ``n`` pilots.

    ``spread`` is half of the 90% interval, as a share of the seconds. ``extra_bytes`` of memory come on top of the
    plan's.
    """

    factor: float
    fixed: float = 0.0
    once: float = 0.0
    spread: float = LEAST_SPREAD
    extra_bytes: int = 0
    n: int = 0


@dataclass(frozen=True)
class Calibration:
    """Fits by kind (see `cost_model.kind_of`), with the machine, threads and time of the pilots.

    ``auto`` is the dtype that ``auto`` resolved to.
    """

    fits: Mapping[str, Fit]
    machine: str = ""
    finished: str = ""
    auto: str | None = None
    threads: int = 0
    pilots: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        fits = {kind: asdict(fit) for kind, fit in self.fits.items()}
        origin = {"machine": self.machine, "threads": self.threads, "finished": self.finished, "auto": self.auto}
        return {**origin, "fits": fits, "pilots": list(self.pilots)}


def fit_all(pilots: Sequence[Pilot], finished: str, auto: str | None = None, threads: int = 0) -> Calibration:
    """A fit of every kind that has pilots; intervals come from the repeats of all kinds together."""
    by_kind: dict[str, list[Pilot]] = {}
    for pilot in pilots:
        by_kind.setdefault(pilot.kind, []).append(pilot)
    fits = {kind: fit(group) for kind, group in by_kind.items()}
    noise, freedom = _pooled([_long(group) for group in by_kind.values()])
    fits = {kind: replace(f, spread=_spread(noise, freedom, f.n)) for kind, f in fits.items()}
    return Calibration(fits, machine_id(), finished, auto, threads, [asdict(pilot) for pilot in pilots])


def fit(pilots: Sequence[Pilot]) -> Fit:
    """The fit of one kind.

    A line through short and long pilots; a factor alone where they are equally long; a constant where the modelled
    seconds are close to zero. The time of a process's first pilot beyond that is ``once``.
    """
    extra = max(pilot.peak_bytes - pilot.planned_bytes for pilot in pilots)
    long = _long(pilots)
    later = _later(pilots)
    modelled, took = fmean(p.modelled for p in long), median(p.seconds for p in long)
    if modelled < _NOTHING:
        factor, fixed = 1.0, max(0.0, took - modelled)
    else:
        factor, fixed = took / modelled, 0.0
        if short := [pilot for pilot in later if pilot not in long]:
            below, quick = fmean(p.modelled for p in short), median(p.seconds for p in short)
            slope = (took - quick) / (modelled - below)
            if 0.1 * factor < slope < factor:
                factor, fixed = slope, max(0.0, took - slope * modelled)
    once = max((p.seconds - fixed - factor * p.modelled for p in pilots if p not in later), default=0.0)
    return Fit(factor, fixed, max(0.0, once), LEAST_SPREAD, extra, len(long))


def _later(pilots: Sequence[Pilot]) -> list[Pilot]:
    """The pilots after the first of their process, or all where there are no others."""
    return [pilot for pilot in pilots if not pilot.first] or list(pilots)


def _long(pilots: Sequence[Pilot]) -> list[Pilot]:
    """The pilots with the most modelled seconds."""
    later = _later(pilots)
    longest = max(pilot.modelled for pilot in later)
    return [pilot for pilot in later if pilot.modelled * _LONGER >= longest]


def _pooled(groups: Iterable[Sequence[Pilot]]) -> tuple[float, int]:
    """Relative standard deviation of repeats within kinds, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for group in groups:
        mean = fmean(pilot.seconds for pilot in group)
        if len(group) > 1 and mean > _NOTHING:
            squares += sum((pilot.seconds / mean - 1) ** 2 for pilot in group)
            freedom += len(group) - 1
    return (squares / freedom) ** 0.5 if freedom else 0.0, freedom


def _spread(noise: float, freedom: int, n: int) -> float:
    """Half of the 90% interval of the mean of ``n`` repeats, as a share of it."""
    if not freedom:
        return _UNREPEATED
    t90 = _T90[min(freedom, len(_T90)) - 1]
    return min(1.0, max(LEAST_SPREAD, t90 * noise / math.sqrt(n)))


def read_calibration(folder: Path, threads: int) -> tuple[Calibration | None, str | None]:
    """The pilots of a run's folder, or why they do not apply to a plan for this machine and these threads.

    Neither where there are no pilots.
    """
    try:
        values = read_json(folder / FILE)["calibration"]
        fits = {kind: Fit(**fit) for kind, fit in values["fits"].items()}
        origin = values["machine"], values["finished"], values["auto"], int(values["threads"])
        calibration = Calibration(fits, *origin, values["pilots"])
    except (MechstudyError, KeyError, TypeError):
        return None, None
    were = f"pilots of {calibration.finished} were"
    if calibration.machine != machine_id():
        return None, f"{were} on another machine (CPU, GPUs or torch)"
    if calibration.threads != threads:
        s = "" if calibration.threads == 1 else "s"
        asked = f"this plan is for {threads} (--threads, compute.threads)"
        return None, f"{were} for {calibration.threads} thread{s}, {asked}"
    return calibration, None


def joint_spread(parts: Iterable[tuple[float, float]]) -> float:
    """Half-width in seconds of a sum of (seconds, spread), whose errors are independent."""
    return math.sqrt(sum((seconds * spread) ** 2 for seconds, spread in parts))
