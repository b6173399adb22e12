"""What short pilots on the target machine say of the time and memory model; kept in ``<run>/validate.json``.

Per kind of unit: seconds = once + fixed + factor x what the model says. ``once`` is paid by the first unit of a kind in
a process (imports, compiled kernels), ``fixed`` by every one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.machine import machine_id

FILE = "validate.json"
_T90 = {2: 6.31, 3: 2.92, 4: 2.35, 5: 2.13, 6: 2.02, 7: 1.94, 8: 1.89}  # Student's t, 90% two-sided, by pilots
LEAST_SPREAD = 0.10  # of any interval: a machine differs from itself by as much
_LONGER = 1.5  # times the model's seconds, from which a pilot tells a slope from a constant


@dataclass(frozen=True)
class Pilot:
    """A unit that was run to learn of its kind. ``modelled`` seconds without loading, ``planned_bytes`` of memory;
    ``first``: of its kind in the process."""

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
    """Of one kind. ``spread`` is half of the 90% interval, as a share of the seconds; ``extra_bytes`` of memory come on
    top of what the plan counts; ``n`` pilots."""

    factor: float
    fixed: float = 0.0
    once: float = 0.0
    spread: float = LEAST_SPREAD
    extra_bytes: int = 0
    n: int = 0


@dataclass(frozen=True)
class Calibration:
    """Fits by kind (see `times.kind_of`), and the machine and moment they are of."""

    fits: Mapping[str, Fit]
    machine: str = ""
    finished: str = ""
    pilots: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def of(self, kind: str) -> Fit | None:
        return self.fits.get(kind)

    def as_json(self) -> dict[str, Any]:
        fits = {kind: asdict(fit) for kind, fit in self.fits.items()}
        return {"machine": self.machine, "finished": self.finished, "fits": fits, "pilots": list(self.pilots)}


def fit_all(pilots: Sequence[Pilot], finished: str) -> Calibration:
    """A fit of every kind there are pilots of. Kinds without repeated pilots take the widest spread of the others."""
    by_kind: dict[str, list[Pilot]] = {}
    for pilot in pilots:
        by_kind.setdefault(pilot.kind, []).append(pilot)
    fits = {kind: fit(found) for kind, found in by_kind.items()}
    widest = max((f.spread for f in fits.values() if f.n > 1), default=0.25)
    fits = {kind: f if f.n > 1 else Fit(**{**asdict(f), "spread": max(0.25, widest)}) for kind, f in fits.items()}
    return Calibration(fits, machine_id(), finished, [asdict(pilot) for pilot in pilots])


def fit(pilots: Sequence[Pilot]) -> Fit:
    """The fit of one kind: a line through short and long pilots, or a factor alone where they are equally long.

    What the first one of a process took beyond the line is paid once.
    """
    extra = max(pilot.peak_bytes - pilot.planned_bytes for pilot in pilots)
    later = [pilot for pilot in pilots if not pilot.first] or list(pilots)
    longest = max(pilot.modelled for pilot in later)
    if longest <= 0:
        return Fit(0.0, fmean(pilot.seconds for pilot in later), 0.0, LEAST_SPREAD, extra, 1)
    long = [pilot for pilot in later if pilot.modelled * _LONGER > longest]
    short = [pilot for pilot in later if pilot not in long]
    modelled, took = fmean(p.modelled for p in long), median(p.seconds for p in long)
    factor, fixed = took / modelled, 0.0
    if short:
        below, quick = fmean(p.modelled for p in short), median(p.seconds for p in short)
        slope = (took - quick) / (modelled - below)
        if 0.1 * factor < slope < factor:
            factor, fixed = slope, max(0.0, took - slope * modelled)
    once = max((p.seconds - fixed - factor * p.modelled for p in pilots if p.first and p not in later), default=0.0)
    rates = [max(1e-9, p.seconds - fixed) / p.modelled for p in long]
    return Fit(factor, fixed, max(0.0, once), _spread(rates), extra, len(long))


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration of a run's folder; None where it was not validated, or on another machine."""
    with suppress(MechstudyError, KeyError, TypeError):
        found = read_json(folder / FILE)["calibration"]
        fits = {kind: Fit(**values) for kind, values in found["fits"].items()}
        if found["machine"] == machine_id():
            return Calibration(fits, found["machine"], found["finished"], found["pilots"])
    return None


def joint_spread(parts: Iterable[tuple[float, float]]) -> float:
    """Half-width in seconds of a sum of (seconds, spread): kinds err independently of each other."""
    return sum((seconds * spread) ** 2 for seconds, spread in parts) ** 0.5


def _spread(rates: Sequence[float]) -> float:
    """Half of the 90% interval of the mean rate, as a share of it."""
    n = len(rates)
    if n < 2:
        return LEAST_SPREAD
    half = _T90.get(n, 1.8) * stdev(rates) / n**0.5 / max(1e-12, fmean(rates))
    return max(LEAST_SPREAD, min(1.0, half))
