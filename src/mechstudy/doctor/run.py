"""What held a run up, from its own records: usage files, units' states, what was submitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mechstudy.monitoring.record import usages_below
from mechstudy.monitoring.run_usage import PhaseUsage, by_phase
from mechstudy.runner.slurm.record import has_record, read_record
from mechstudy.runner.unit_state import UnitState, read_states
from mechstudy.store.provenance import nvidia_smi
from mechstudy.study.run_folder import RunFolder


@dataclass(frozen=True)
class Diagnosis:
    """Phase by phase, and what could not be said."""

    phases: list[PhaseUsage]
    notes: list[str]


def diagnose(run: Path, study: Mapping[str, Any]) -> Diagnosis:
    """Every phase that was monitored. ``study``: as plain JSON, for the fields that advice names."""
    usages = usages_below(RunFolder(run).store.root)
    phases = by_phase(usages.values(), study, _facts(run))
    notes = []
    if not phases:
        notes.append("no usage is recorded here: run with compute.monitor: true (the default)")
    elif _gone(run, set(usages)):
        notes.append(
            "some artifacts have no usage beside them: they were made with compute.monitor: false, or restored"
        )
    return Diagnosis(phases, notes)


def _gone(run: Path, files: set[Path]) -> bool:
    from mechstudy.monitoring.record import usage_file

    return any(usage_file(artifact.path) not in files for artifact in RunFolder(run).store.all())


def _facts(run: Path) -> dict[str, dict[str, Any]]:
    """phase -> what the queue and the machine add to what was used."""
    from mechstudy.monitoring.run_usage import ORDER

    facts: dict[str, dict[str, Any]] = {phase: {"gpus_here": _gpus_here()} for phase in ORDER}
    states = read_states(run)
    if not has_record(run):
        return facts
    record = read_record(run)
    submitted = {entry.number: entry.at for entry in record.history}
    phase_of = {unit: job.phase for _, job in record.jobs() for unit in job.tasks.values()}
    for unit, state in states.items():
        found = facts.setdefault(phase_of.get(unit, unit.partition("[")[0]), {})
        found["slurm"] = True
        found["restarts"] = found.get("restarts", 0) + max(0, len(state.attempts) - 1)
        found["queued"] = found.get("queued", 0.0) + _queued(unit, state, states, submitted, record)
    return facts


def _queued(
    unit: str, state: UnitState, states: Mapping[str, UnitState], submitted: Mapping[int, str], record: Any
) -> float:
    """Seconds between a unit's being ready and its start, and between its attempts.

    Ready: submitted, and every unit of the groups that its job waits for has ended.
    """
    total, before = 0.0, 0.0
    for attempt in state.attempts:
        ready = [_time(submitted.get(attempt.submission)), before]
        for entry, job, _ in record.of_unit(unit):
            if entry.number == attempt.submission:
                waited = {u for other in entry.jobs if other.group in job.after for u in other.tasks.values()}
                ready += [_ended(states[u]) for u in waited if u in states]
        total += max(0.0, _time(attempt.started) - max(ready)) if max(ready) else 0.0
        before = _time(attempt.ended)
    return total


def _ended(state: UnitState) -> float:
    return _time(state.last.ended) if state.last is not None else 0.0


def _time(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _gpus_here() -> int:
    found = nvidia_smi()
    return 0 if found is None else max(1, len(found.splitlines()) - 1)
