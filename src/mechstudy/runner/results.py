"""What a run of a study did."""

from __future__ import annotations

from dataclasses import dataclass

from mechstudy.runner.job import Outcome
from mechstudy.store.artifact import Artifact
from mechstudy.study.unit import Unit


@dataclass(frozen=True)
class UnitResult:
    """A unit after a run. ``status`` is done, failed, stopped (by a gate) or pending; ``ran``: in this run."""

    unit: Unit
    status: str
    ran: bool = False
    reason: str | None = None
    artifact: Artifact | None = None

    @property
    def name(self) -> str:
        """The unit's name."""
        return self.unit.name

    @property
    def phase(self) -> str:
        """The name of its phase."""
        return self.unit.phase.name

    @property
    def seconds(self) -> float | None:
        """Seconds it took, of the process that finished it."""
        return None if self.artifact is None else self.artifact.manifest.get("seconds")


@dataclass(frozen=True)
class RunResult:
    """What a run did: every unit of the study, the errors in full, and the wall time."""

    units: list[UnitResult]
    failures: list[Outcome]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, or 2 where a unit failed by a user error, or 1 where one crashed."""
        codes = [failure.exit_code for failure in self.failures]
        return min(codes, default=0)

    @property
    def ran(self) -> list[str]:
        """Names of the units that finished in this run."""
        return [unit.name for unit in self.units if unit.ran and unit.status == "done"]

    def unit(self, name: str) -> UnitResult:
        """The result of one unit."""
        return next(unit for unit in self.units if unit.name == name)
