"""A run's usage by phase, from its files alone: what the report, `usage` and `doctor` show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mechstudy.monitoring.bottlenecks import Bottleneck, Evidence, bottlenecks
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.monitoring.record import Session
from mechstudy.monitoring.summary import SHORT, Use, use_of


@dataclass(frozen=True)
class PhaseUsage:
    """A phase: what it used in all, unit by unit, and what held it up."""

    phase: str
    evidence: Evidence
    units: Mapping[str, Sequence[Session]]
    found: Sequence[Bottleneck]

    @property
    def use(self) -> Use:
        """What the phase used in all."""
        return self.evidence.use

    @property
    def verdict(self) -> str:
        """``as expected``, ``low``, ``above``, or ``not judged`` (short, or without a range)."""
        wanted = self.evidence.expected
        if wanted is None or self.use.seconds < SHORT:
            return "not judged"
        return "low" if self.use.busy < wanted.low else "above" if self.use.busy > wanted.high else "as expected"


def by_phase(
    sessions: Iterable[Sequence[Session]],
    study: Mapping[str, Any],
    profiles: Mapping[str, PhaseProfile],
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[PhaseUsage]:
    """The usage of each phase, from every unit's sessions.

    Args:
        study: as plain JSON; fields that it lacks (a report's has no ``compute``) are skipped.
        profiles: what is expected of each phase, in the order of phases.
        facts: phase -> more fields of `Evidence` (``queued``, ``restarts``, ``gpus_here``, ``slurm``).
    """
    grouped: dict[str, dict[str, Sequence[Session]]] = {}
    for unit in sessions:
        if unit:
            grouped.setdefault(unit[-1].phase, {})[unit[-1].unit] = unit
    usages = []
    for phase in (*(name for name in profiles if name in grouped), *(name for name in grouped if name not in profiles)):
        units, profile = grouped[phase], profiles.get(phase, PhaseProfile())
        use = use_of(session for unit in units.values() for session in unit)
        if use is None:
            continue
        evidence = Evidence(
            phase,
            use,
            len(units),
            profile=profile,
            batch_is=_at(study, *profile.batch.split(".")),
            source=_at(study, "dictionaries", "source"),
            own_range=_own_range(units),
        )
        evidence = replace(evidence, **(facts or {}).get(phase, {}))
        usages.append(PhaseUsage(phase, evidence, units, bottlenecks(evidence)))
    return usages


def _own_range(units: Mapping[str, Sequence[Session]]) -> tuple[float, float] | None:
    """What the study said of the phase when its last unit began."""
    last = max((unit[-1] for unit in units.values()), key=lambda session: session.started)
    return None if last.expected is None else (last.expected[0], last.expected[1])


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
