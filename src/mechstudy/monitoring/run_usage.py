"""A run's usage by phase, from its files alone: what the report, `usage` and `doctor` show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mechstudy.monitoring.bottlenecks import Bottleneck, Evidence, bottlenecks
from mechstudy.monitoring.record import Session
from mechstudy.monitoring.summary import Use, use_of

ORDER = (
    "model", "prompts", "baseline", "corpus", "capture", "stream", "train", "variant", "attribute", "features",
    "intervene", "report",
)  # fmt: skip


@dataclass(frozen=True)
class PhaseUsage:
    """A phase: what it used in all, unit by unit, and what held it up."""

    phase: str
    evidence: Evidence
    units: Mapping[str, Sequence[Session]]
    found: Sequence[Bottleneck]

    @property
    def use(self) -> Use:
        return self.evidence.use

    @property
    def verdict(self) -> str:
        """``as expected``, ``low``, ``above``, or ``not judged`` (short, or without a range)."""
        from mechstudy.monitoring.summary import SHORT

        wanted = self.evidence.expected
        if wanted is None or self.use.seconds < SHORT:
            return "not judged"
        return "low" if self.use.busy < wanted.low else "above" if self.use.busy > wanted.high else "as expected"


def by_phase(
    sessions: Iterable[Sequence[Session]],
    study: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[PhaseUsage]:
    """Phases in their order, of every unit's sessions.

    Args:
        study: as plain JSON; fields that are not in it (``compute`` is not part of a report's) are passed over.
        facts: phase -> more fields of `Evidence` (``queued``, ``restarts``, ``gpus_here``, ``slurm``).
    """
    grouped: dict[str, dict[str, Sequence[Session]]] = {}
    for unit in sessions:
        if unit:
            grouped.setdefault(unit[-1].phase, {})[unit[-1].unit] = unit
    found = []
    for phase in sorted(grouped, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        units = grouped[phase]
        use = use_of(session for unit in units.values() for session in unit)
        if use is None:
            continue
        evidence = Evidence(phase, use, len(units), **_batch(phase, study), source=_source(study))
        evidence = replace(evidence, own_range=_own_range(units), **(facts or {}).get(phase, {}))
        found.append(PhaseUsage(phase, evidence, units, bottlenecks(evidence)))
    return found


def _own_range(units: Mapping[str, Sequence[Session]]) -> tuple[float, float] | None:
    """What the study said of the phase when its last unit began."""
    last = max((unit[-1] for unit in units.values()), key=lambda session: session.started)
    return None if last.expected is None else (last.expected[0], last.expected[1])


def _batch(phase: str, study: Mapping[str, Any]) -> dict[str, Any]:
    """The field that sets the size of the phase's batches, and what it is."""
    if phase in ("train", "variant", "stream"):
        size = _at(study, "dictionaries", "training", "batch_size")
        return {"batch": "dictionaries.training.batch_size", "batch_is": size}
    return {"batch": "compute.batch_tokens", "batch_is": _at(study, "compute", "batch_tokens")}


def _source(study: Mapping[str, Any]) -> str | None:
    return _at(study, "dictionaries", "source")


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
