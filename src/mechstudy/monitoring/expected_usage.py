"""How busy a phase should keep what it runs on."""

from __future__ import annotations

from dataclasses import dataclass

ON_CPU = (0.70, 1.00)  # ranges of phases are of a GPU; a CPU waits only for memory and disk


@dataclass(frozen=True)
class PhaseProfile:
    """What is expected of a phase, and what to change where it is slow.

    Attributes:
        gpu: the range of a GPU's utilisation; None for phases that are short and compute little.
        batch: the field that sets the size of its batches.
        when_reading: the remedy where it waits for reads, ``when_writing`` for writes.
        command: the command that runs the phase.
    """

    gpu: tuple[float, float] | None = None
    batch: str = "compute.batch_tokens"
    when_reading: str | None = None
    when_writing: str | None = None
    command: str = "run"


UNJUDGED = PhaseProfile()


@dataclass(frozen=True)
class Expected:
    """Shares of time between which a phase is as it should be; ``of`` names what is busy."""

    low: float
    high: float
    of: str

    def __str__(self) -> str:
        return f"{self.low:.0%}-{self.high:.0%} of {self.of}"
