"""Peak memory of every unit: what it works with, what the process holds already, and what pilots found beside that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mechstudy.execution.budget.calibration import Calibration
from mechstudy.execution.budget.hardware import Hardware
from mechstudy.execution.budget.times import held_bytes, kind_of, together_bytes
from mechstudy.execution.graph import Evaluation


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak: as the study says, with the model in float32 throughout, and in bfloat16 throughout."""

    peak: int
    float32: int
    bfloat16: int

    @staticmethod
    def largest(parts: Sequence[Footprint]) -> Footprint:
        """The largest of each."""
        return Footprint(
            max((p.peak for p in parts), default=0),
            max((p.float32 for p in parts), default=0),
            max((p.bfloat16 for p in parts), default=0),
        )


def footprints(
    evaluation: Evaluation, hardware: Hardware, calibration: Calibration | None, *, together: bool
) -> dict[str, Footprint]:
    """Of every unit. ``together``: units run in one process one after another, which keeps models and dictionaries."""
    kept: dict[str | None, dict[str, int]] = {None: {}, "float32": {}, "bfloat16": {}}
    found = {}
    for name, node in evaluation.nodes.items():
        estimate = node.unit.estimate
        fit = None if calibration is None else calibration.of(kind_of(node.unit))
        beside = hardware.reserved_bytes if fit is None else hardware.reserved_bytes + fit.extra_bytes
        peaks = []
        for precision, held in kept.items():
            own = held_bytes(estimate, hardware, precision)
            all_ = together_bytes(held, own) if together else own
            if together and node.must_run:
                kept[precision] = dict(all_)
            peaks.append(max(0, sum(all_.values()) + estimate.working_bytes + beside))
        found[name] = Footprint(*peaks)
    return found
