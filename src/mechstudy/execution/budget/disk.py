"""Bytes a study writes, at the fullest moment and in the end, against what the disk and the quota leave."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from mechstudy.activations.quota import Quota
from mechstudy.core.errors import MechstudyError
from mechstudy.core.sizes import human
from mechstudy.execution.folder import ARTIFACTS
from mechstudy.execution.graph import Evaluation
from mechstudy.phases.retention import rule_of
from mechstudy.phases.unit import Unit

SPARE = 256 << 20  # bytes kept free beside what the study writes: logs, checkpoints, the report


class Sized(Protocol):
    """A unit with its bytes."""

    @property
    def unit(self) -> str: ...

    @property
    def bytes_on_disk(self) -> int: ...


@dataclass(frozen=True)
class Disk:
    """Bytes the units still to run write: as the study says, with captured activations kept, and discarded."""

    needed: int
    needed_keeping: int
    needed_discarding: int
    free: int
    quota_left: int | None = None  # of storage.quota

    @property
    def short_by(self) -> int:
        """Bytes that are missing; 0 when it fits."""
        if not self.needed:
            return 0
        over = 0 if self.quota_left is None else self.needed - self.quota_left
        return max(0, self.needed + SPARE - self.free, over)


def disk_need(evaluation: Evaluation, folder: Path, quota: int | None = None) -> Disk:
    """Bytes that the units to run will write, at the fullest moment, and bytes free where the run lies."""
    as_said = _peak_bytes(evaluation, lambda unit: unit.retention == "discard")
    keeping = _peak_bytes(evaluation, lambda unit: False)
    discarding = _peak_bytes(evaluation, may_go)
    left = None if quota is None else Quota(quota, folder / ARTIFACTS).left(finished=True)
    return Disk(as_said, keeping, discarding, free_bytes(folder), left)


def disk_refusal(disk: Disk, folder: Path, rows: Sequence[Sized] = ()) -> MechstudyError | None:
    """The error that says by how much the disk is too small; None when it is not."""
    if not disk.short_by:
        return None
    facts = {
        "needed": f"{human(disk.needed)} at the fullest moment, and {human(SPARE)} to spare",
        "free": human(disk.free),
    }
    if disk.quota_left is not None:
        facts["quota"] = f"{human(disk.quota_left)} left of storage.quota"
    if rows:
        largest = max(rows, key=lambda row: row.bytes_on_disk)
        facts["largest"] = f"{largest.unit}, {human(largest.bytes_on_disk)}"
    fix = "smaller corpus.tokens or dictionaries.layers_per_pass, dictionaries.store_dtype: int8 or source: stream"
    fix += ", or --out on another disk" if disk.quota_left is None else ", or a larger storage.quota"
    if disk.needed_discarding < disk.needed:
        fix = f"storage.retain.capture: discard (needs {human(disk.needed_discarding)}), {fix}"
    tight = "storage.quota" if disk.needed + SPARE <= disk.free else "the disk"
    what = f"{tight} is too small for this study by {human(disk.short_by)}"
    return MechstudyError(what, where=str(folder), facts=facts, fix=fix)


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk where the folder is or will be."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def may_go(unit: Unit) -> bool:
    """Whether the run discards this unit's payload, or would by default."""
    usual = rule_of(unit.phase, unit.spec).retention
    return bool(unit.discard_patterns) and "discard" in (unit.retention, usual)


def kept_bytes(unit: Unit) -> int:
    """Bytes that stay when payload that may go is discarded once nobody needs it any more."""
    size = unit.estimate.bytes_on_disk
    if not may_go(unit):
        return size
    gone = sum(
        bytes_
        for name, bytes_ in unit.estimate.payload.items()
        if any(fnmatchcase(name, pattern) for pattern in unit.discard_patterns)
    )
    return max(0, size - (gone or size))


def _peak_bytes(evaluation: Evaluation, discards: Callable[[Unit], bool]) -> int:
    """Bytes on disk at the fullest moment of the units to run, in order, payload deleted after its last consumer."""
    last: dict[str, str] = {}
    units, to_run = evaluation.graph.units, evaluation.to_run
    for name in to_run:
        for source in units[name].inputs.values():
            if units[name].reads_payload:
                last[source] = name
    held = peak = 0
    for name in to_run:
        held += units[name].estimate.bytes_on_disk
        peak = max(peak, held)
        for source in set(units[name].inputs.values()):
            unit = units[source]
            if last.get(source) == name and source in to_run and discards(unit):
                held -= unit.estimate.bytes_on_disk - kept_bytes(unit)
    return peak
