"""What a run of a study did."""

from __future__ import annotations

from dataclasses import dataclass

from mechstudy.runner.run_unit import Outcome
from mechstudy.store.artifacts import Artifact


@dataclass(frozen=True)
class UnitResult:
    """A unit after a run. ``status``: done, failed, stopped (a gate) or pending; ``ran``: in this run."""

    name: str
    phase: str
    status: str
    ran: bool = False
    seconds: float | None = None
    reason: str | None = None
    artifact: Artifact | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run did: every unit of the study, the errors in full, and the wall time."""

    units: list[UnitResult]
    failures: list[Outcome]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, or 2 where a unit failed for the user to mend, or 1 where one crashed."""
        if any(failure.crash for failure in self.failures):
            return 1
        return 2 if self.failures else 0

    @property
    def ran(self) -> list[str]:
        """Names of the units that ran to their end in this run."""
        return [unit.name for unit in self.units if unit.ran and unit.status == "done"]

    def unit(self, name: str) -> UnitResult:
        return next(unit for unit in self.units if unit.name == name)
