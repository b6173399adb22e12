"""Diagnosis of a run from its records: usage files, states of units, submissions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mechstudy.machine.hardware import nvidia_smi
from mechstudy.monitoring.bottlenecks import PhaseUsage, by_phase
from mechstudy.monitoring.record import usage_file, usages_below
from mechstudy.runner.slurm.record import has_record, read_record
from mechstudy.runner.unit_state import UnitState, read_states
from mechstudy.study.phases import registry
from mechstudy.study.run_folder import RunFolder


@dataclass(frozen=True)
class Diagnosis:
    """Usage and bottlenecks of each phase, and notes on missing records."""

    phases: list[PhaseUsage]
    notes: list[str]


def diagnose(run: Path, study: Mapping[str, Any]) -> Diagnosis:
    """Diagnoses every monitored phase; advice names fields of ``study``, which is plain JSON."""
    usages = usages_below(RunFolder(run).store.root)
    phases = by_phase(usages.values(), study, registry.usage_profiles(), _facts(run))
    notes = []
    if not phases:
        notes.append("no usage is recorded here: run with compute.monitor: true (the default)")
    elif any(usage_file(artifact.path) not in usages for artifact in RunFolder(run).store.all()):
        notes.append("some artifacts have no usage file: they were made with compute.monitor: false, or restored")
    return Diagnosis(phases, notes)


def _facts(run: Path) -> dict[str, dict[str, Any]]:
    """Facts by phase, of the queue and the machine."""
    listing = nvidia_smi()
    gpus = 0 if listing is None else max(1, len(listing.splitlines()) - 1)
    facts: dict[str, dict[str, Any]] = {phase: {"gpus_here": gpus} for phase in registry.names()}
    states = read_states(run)
    if not has_record(run):
        return facts
    record = read_record(run)
    submitted = {entry.number: entry.at for entry in record.history}
    phase_of = {unit: job.phase for _, job in record.jobs() for unit in job.tasks.values()}
    for unit, state in states.items():
        of_phase = facts.setdefault(phase_of.get(unit, unit.partition("[")[0]), {})
        of_phase["slurm"] = True
        of_phase["restarts"] = of_phase.get("restarts", 0) + max(0, len(state.attempts) - 1)
        of_phase["queued"] = of_phase.get("queued", 0.0) + _queued(unit, state, states, submitted, record)
    return facts


def _queued(
    unit: str, state: UnitState, states: Mapping[str, UnitState], submitted: Mapping[int, str], record: Any
) -> float:
    """Seconds that a unit was ready but did not run, before its start and between its attempts.

    It is ready once it is submitted and every unit of the groups that its job waits for has ended.
    """
    total, before = 0.0, 0.0
    for attempt in state.attempts:
        ready = [_time(submitted.get(attempt.submission)), before]
        for entry, job, *_ in record.of_unit(unit):
            if entry.number == attempt.submission:
                waited = {u for other in entry.jobs if other.group in job.after for u in other.tasks.values()}
                ready += [_time(last.ended) for u in waited if u in states and (last := states[u].last) is not None]
        total += max(0.0, _time(attempt.started) - max(ready)) if max(ready) else 0.0
        before = _time(attempt.ended)
    return total


def _time(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0
