"""Bytes that a study writes, at the fullest moment and in the end, against the free disk and the quota."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mechstudy.activations.quota import Quota
from mechstudy.core.errors import MechstudyError
from mechstudy.core.sizes import human
from mechstudy.study.dag import Evaluation
from mechstudy.study.run_folder import ARTIFACTS
from mechstudy.study.unit import Unit

SPARE = 256 << 20  # bytes kept free beside what the study writes: logs, checkpoints, the report


@dataclass(frozen=True)
class Disk:
    """Bytes that the remaining units write at the fullest moment.

    ``needed`` is with the study's own retention, the others with captured activations kept or discarded.
    """

    needed: int
    needed_keeping: int
    needed_discarding: int
    free: int
    quota_left: int | None = None  # of storage.quota

    @property
    def over_disk(self) -> int:
        """Bytes that the disk lacks, the spare ones included; 0 where it is large enough."""
        return max(0, self.needed + SPARE - self.free) if self.needed else 0

    @property
    def over_quota(self) -> int:
        """Bytes that the quota lacks. Only the run uses it, so nothing is spared."""
        return 0 if self.quota_left is None or not self.needed else max(0, self.needed - self.quota_left)

    @property
    def short_by(self) -> int:
        """Bytes that are missing; 0 where the study fits."""
        return max(self.over_disk, self.over_quota)


def disk_need(evaluation: Evaluation, folder: Path, quota: int | None = None) -> Disk:
    """Bytes that the remaining units will write at the fullest moment, and the free bytes of the run's disk."""
    as_said = _peak_bytes(evaluation, lambda unit: unit.retention == "discard")
    keeping = _peak_bytes(evaluation, lambda unit: False)
    discarding = _peak_bytes(evaluation, may_go)
    left = None if quota is None else Quota(quota, folder / ARTIFACTS).left(finished=True)
    return Disk(as_said, keeping, discarding, free_bytes(folder), left)


def disk_refusal(
    disk: Disk, folder: Path, sizes: Mapping[str, int] | None = None, *, here: bool = True
) -> MechstudyError | None:
    """The error for a disk or quota that is too small; None where both suffice.

    Args:
        sizes: bytes of each unit's artifact, to name the largest.
        here: the study runs on this machine's disk; elsewhere only the quota counts.
    """
    short = max(disk.over_disk if here else 0, disk.over_quota)
    if not short:
        return None
    by_quota = disk.over_quota == short
    facts = {"needed": f"{human(disk.needed)} at the fullest moment"}
    if by_quota:
        facts["quota"] = f"{human(disk.quota_left or 0)} left of storage.quota"
    else:
        facts["needed"] += f", and {human(SPARE)} to spare"
        facts["free"] = f"{human(disk.free)} at {nearest_folder(folder)}"
    if sizes:
        largest = max(sizes, key=sizes.__getitem__)
        facts["largest"] = f"{largest}, {human(sizes[largest])}"
    fix = "smaller corpus.tokens or dictionaries.layers_per_pass, dictionaries.store_dtype: int8 or source: stream"
    fix += ", or a larger storage.quota" if by_quota else ", or --out on another disk"
    if disk.needed_discarding < disk.needed:
        fix = f"storage.retain.capture: discard (needs {human(disk.needed_discarding)}), {fix}"
    tight = "storage.quota" if by_quota else "the disk"
    return MechstudyError(
        f"{tight} is too small for this study by {human(short)}", where=str(folder), facts=facts, fix=fix
    )


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk where the folder is or will be."""
    return shutil.disk_usage(nearest_folder(folder)).free


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest existing one above it, which is on the same disk."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def may_go(unit: Unit) -> bool:
    """Whether the run discards the unit's payload, or would by default."""
    return bool(unit.phase.payload) and "discard" in (unit.retention, unit.phase.retention)


def kept_bytes(unit: Unit) -> int:
    """Bytes that stay once the payload that may be discarded is."""
    size = unit.estimate.bytes_on_disk
    if not may_go(unit):
        return size
    patterns, payload = unit.phase.payload, unit.estimate.payload
    gone = sum(payload[name] for name in payload if any(fnmatchcase(name, pattern) for pattern in patterns))
    return max(0, size - (gone or size))


def _peak_bytes(evaluation: Evaluation, discards: Callable[[Unit], bool]) -> int:
    """Bytes on disk at the fullest moment of the units to run, in order, payload deleted after its last consumer."""
    last: dict[str, str] = {}
    units, to_run = evaluation.graph.units, evaluation.to_run
    for name in to_run:
        if units[name].phase.reads_payload:
            last |= dict.fromkeys(units[name].sources, name)
    held = peak = 0
    for name in to_run:
        held += units[name].estimate.bytes_on_disk
        peak = max(peak, held)
        for source in units[name].sources:
            unit = units[source]
            if last.get(source) == name and source in to_run and discards(unit):
                held -= unit.estimate.bytes_on_disk - kept_bytes(unit)
    return peak
