"""Peak memory of every unit: its working set, what the process already holds, and the correction from pilots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mechstudy.planning.calibration import Calibration
from mechstudy.planning.hardware import Hardware
from mechstudy.planning.times import held_bytes, kind_of, peak_of, together_bytes
from mechstudy.study.dag import Evaluation


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
        return Footprint(
            max((p.peak for p in parts), default=0),
            max((p.float32 for p in parts), default=0),
            max((p.bfloat16 for p in parts), default=0),
        )


def footprints(
    evaluation: Evaluation,
    hardware: Hardware,
    calibration: Calibration | None,
    *,
    together: bool,
    processes: Mapping[str, int] | None = None,
) -> dict[str, Footprint]:
    """The footprint of every unit, with all processes that share it.

    Every process that shares a unit loads the model for itself; pages of a mapped file are counted for each, as a
    cluster's accounting does. On GPUs each has its own, and memory is one GPU's.

    Args:
        together: units run one after another in the same processes, which keep models and dictionaries loaded.
        processes: unit -> number of processes that share it, where more than one.
    """
    kept: dict[str | None, dict[str, int]] = {None: {}, "float32": {}, "bfloat16": {}}
    helped: dict[str | None, dict[str, int]] = {None: {}, "float32": {}, "bfloat16": {}}
    idle = 0  # processes that shared an earlier unit and wait
    result = {}
    for name, node in evaluation.nodes.items():
        estimate = node.unit.estimate
        fit = None if calibration is None else calibration.of(kind_of(node.unit))
        extra = 0 if fit is None else fit.extra_bytes
        n = 0 if hardware.device == "cuda" else (processes or {}).get(name, 1) - 1
        peaks, file = [], 0
        for precision in kept:
            before, theirs = (kept[precision], helped[precision]) if together else ({}, {})
            leader, helper = (peak_of(estimate, hardware, held, precision) for held in (before, theirs))
            peak = max(0, leader.bytes + extra)
            if precision is None:
                file = leader.file + n * helper.file
            if n:
                peak += n * max(0, helper.bytes + extra)
            elif together:
                peak += idle * (hardware.reserved_bytes + sum(theirs.values()))
            if together and node.must_run:
                own = held_bytes(estimate, hardware, precision)
                kept[precision] = together_bytes(before, own)
                models = {key: size for key, size in own.items() if key.startswith("model ")}
                helped[precision] = together_bytes(theirs, models if n else {})
            peaks.append(peak)
        idle = max(idle, n if node.must_run else 0)
        result[name] = Footprint(peaks[0], peaks[1], peaks[2], file)
    return result


def processes_of(evaluation: Evaluation, asked: int | str) -> dict[str, int]:
    """The number of processes of each unit that can be shared, on a CPU: as many as asked for."""
    n = asked if isinstance(asked, int) else 1
    return {name: n for name, node in evaluation.nodes.items() if n > 1 and node.unit.phase.shares(node.unit)}
