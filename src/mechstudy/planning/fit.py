"""Checks of a plan against disk, quota, memory and time limits, with a change that makes the study fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.planning.cost_model import peak_of
from mechstudy.planning.disk import disk_refusal
from mechstudy.planning.hardware import PROFILES, Hardware, asked_hardware, load_hardware
from mechstudy.planning.machine import this_machine
from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.planning.plan import Plan, PlanRow, make_plan
from mechstudy.study.slurm_config import SlurmConfig, seconds
from mechstudy.study.study import Study
from mechstudy.study.units import build_units

_LEAST_TOKENS = 256


def refusal(
    plan: Plan, opened: OpenedStudy | None = None, slurm: SlurmConfig | None = None
) -> MechstudyError | None:  # fmt: skip
    """Why the study cannot run as it is, and what to change; None where it can. The first of `refusals`."""
    return next(iter(refusals(plan, opened, slurm)), None)


def refusals(
    plan: Plan, opened: OpenedStudy | None = None, slurm: SlurmConfig | None = None, *, disk_here: bool = True
) -> list[MechstudyError]:
    """Every reason why the study cannot run as it is: memory first, then disk, then time limits.

    Args:
        disk_here: the study will run on this machine's disk; elsewhere the free bytes of this disk do not matter.
    """
    todo = [row for row in plan.rows if row.to_run]
    reasons = [_memory(plan, todo, opened), disk_refusal(plan.disk, plan.folder, plan.sizes, here=disk_here)]
    if slurm is not None:
        reasons += [_time(plan, todo, slurm), _job_memory(todo, slurm, plan.hardware)]
    return [error for error in reasons if error is not None]


def submit_refusal(opened: OpenedStudy, slurm: SlurmConfig) -> MechstudyError | None:
    """Why jobs of this study would fail, and what to change; None where nothing is known to fail.

    A study that names its hardware is checked like a plan. Otherwise the compute nodes are unknown, and only the disk
    and the memory of jobs without a GPU are checked.
    """
    named = asked_hardware(opened.study.compute)
    node = named or this_machine("cpu", opened.options.total_threads).model_copy(update={"source": "profile"})
    plan = make_plan(opened.evaluate(), opened.folder, opened.options, hardware=node, slurm=slurm)
    if named is not None:
        return refusal(plan, opened, slurm)
    on_cpu = [row for row in plan.rows if row.to_run and not _asks_gpus(slurm.of_phase(row.phase))]
    return disk_refusal(plan.disk, plan.folder, plan.sizes) or _job_memory(on_cpu, slurm, node)


def _asks_gpus(asked: SlurmConfig) -> bool:
    return asked.gpus is not None and str(asked.gpus).rpartition(":")[2].strip("0") != ""


def _memory(plan: Plan, rows: Sequence[PlanRow], opened: OpenedStudy | None) -> MechstudyError | None:
    """The error for a unit that needs more memory than the hardware has."""
    hardware = plan.hardware
    limit = plan.memory_total if hardware.device == "cpu" and hardware.is_here else hardware.memory_bytes
    if not rows or (largest := max(rows, key=lambda row: row.memory.least)).memory.least <= limit:
        return None
    short = human(largest.memory.least - limit)
    return MechstudyError(
        f"the memory of {hardware.name} is too small for this study by {short}",
        facts={"needed": f"{largest.unit} needs {human(largest.memory.least)}", "has": human(limit)},
        fix=", or ".join(_memory_fixes(plan, limit, largest, opened)),
    )


def _memory_fixes(plan: Plan, limit: int, largest: PlanRow, opened: OpenedStudy | None) -> Iterator[str]:
    """Changes that each make every unit fit, then hardware that is large enough."""
    tried = _changes(opened.study) if opened is not None else ()
    fits = [text for text, study in tried if opened is not None and _peak(opened, study, plan.hardware) <= limit]
    yield from fits[:3]
    larger = [p for p in map(load_hardware, sorted(f.stem for f in PROFILES.glob("*.yaml"))) if p.device == "cuda"]
    enough = [p.name.lower() for p in larger if p.memory_bytes >= largest.memory.least]
    if plan.hardware.device == "cuda" and enough:
        yield f"--hardware {enough[0]}"
    elif not fits:
        yield f"a smaller model, or a machine with {human(largest.memory.least)} of memory"


def _changes(study: Study) -> Iterator[tuple[str, Study]]:
    """Studies that need less memory, smallest change first."""
    tokens = study.compute.batch_tokens // 2
    while tokens >= _LEAST_TOKENS:
        yield f"compute.batch_tokens: {tokens}", _with(study, "compute", batch_tokens=tokens)
        tokens //= 2
    d = study.dictionaries
    if d.model_dtype != "bfloat16":
        yield "dictionaries.model_dtype: bfloat16", _with(study, "dictionaries", model_dtype="bfloat16")
    for parts in (2, 4, 8):
        training = d.training.model_copy(update={"accumulate": parts})
        yield f"dictionaries.training.accumulate: {parts}", _with(study, "dictionaries", training=training)
    if d.source == "stream":
        for n in (5, 2, 1):
            if n < d.layers_per_pass:
                yield f"dictionaries.layers_per_pass: {n}", _with(study, "dictionaries", layers_per_pass=n)
    for expansion in (2, 1):
        smaller = d.architecture.model_copy(update={"expansion": float(expansion), "d_sae": None})
        yield f"dictionaries.architecture.expansion: {expansion}", _with(study, "dictionaries", architecture=smaller)


def _with(study: Study, section: str, **fields: Any) -> Study:
    return study.model_copy(update={section: getattr(study, section).model_copy(update=fields)})


def _peak(opened: OpenedStudy, study: Study, hardware: Hardware) -> int:
    """Bytes of the largest unit of a changed study."""
    try:
        units = build_units(study, opened.shapes, "", opened.file.parent.resolve(), published=opened.published)
    except MechstudyError:
        return 1 << 62
    peaks = [peak_of(unit.estimate, hardware) for unit in units]
    return max(peak.bytes - peak.file for peak in peaks)


def _time(plan: Plan, rows: Sequence[PlanRow], slurm: SlurmConfig) -> MechstudyError | None:
    """The error for the unit that exceeds the time of its jobs by most."""
    over = {row.unit: _over(row, slurm.of_phase(row.phase)) for row in rows}
    worst = max(rows, key=lambda row: over[row.unit], default=None)
    if worst is None or over[worst.unit] <= 1 or worst.seconds is None:
        return None
    asked = slurm.of_phase(worst.phase)
    limit, jobs, resumed = seconds(str(asked.time)), _jobs(worst, asked), worst.resumes
    enough = _slurm_time(1.25 * (worst.seconds + asked.signal_lead))
    facts = {
        "limit": f"{duration(limit)}, of which the last {duration(asked.lead)} are for saving",
        "jobs": f"{jobs} one after another at the most" if resumed else "one: it starts again when it is requeued",
    }
    if others := [name for name, factor in over.items() if factor > 1 and name != worst.unit]:
        facts["others"] = ", ".join(others[:6]) + (", ..." if others[6:] else "")
    fewest = _slurm_time(1.25 * (worst.seconds / jobs + asked.signal_lead))
    return MechstudyError(
        f"{worst.unit} takes about {duration(worst.seconds)}, more than its time limit allows",
        where=f"compute.slurm.phases.{worst.phase}.time" if worst.phase in slurm.phases else "compute.slurm.time",
        facts=facts,
        fix=f"time: {enough}" + (f", or at least {fewest}, or a larger max_restarts" if resumed else ""),
    )


def _over(row: PlanRow, asked: SlurmConfig) -> float:
    """A unit's seconds over the usable seconds of all its jobs, those for saving excluded."""
    if asked.time is None or row.seconds is None:
        return 0.0
    usable = max(0, seconds(str(asked.time)) - asked.lead)
    return row.seconds / (usable * _jobs(row, asked)) if usable else math.inf


def _jobs(row: PlanRow, asked: SlurmConfig) -> int:
    """The number of jobs that can work on a unit, each resuming the last one."""
    return asked.max_restarts + 1 if row.resumes else 1


def _job_memory(rows: Sequence[PlanRow], slurm: SlurmConfig, hardware: Hardware) -> MechstudyError | None:
    """The error for a unit that needs more memory than its job asks for."""
    for row in rows:
        asked = slurm.of_phase(row.phase).memory
        limit = None if asked is None else _memory_bytes(str(asked))
        if hardware.device == "cuda" or not limit or row.memory.peak <= limit:
            continue
        return MechstudyError(
            f"{row.unit} needs {human(row.memory.peak)}, more than its job asks for",
            where=f"compute.slurm.phases.{row.phase}.memory" if row.phase in slurm.phases else "compute.slurm.memory",
            facts={"asked for": human(limit)},
            fix=f"memory: {-(-int(1.15 * row.memory.peak) // (1 << 30))}G",
        )
    return None


def _memory_bytes(text: str) -> int:
    """Slurm's memory: a number of MiB, or with K, M, G, T (binary)."""
    shifts = {"K": 10, "M": 20, "G": 30, "T": 40}
    return int(text[:-1]) << shifts[text[-1]] if text[-1] in shifts else int(text) << 20


def _slurm_time(seconds_: float) -> str:
    """``HH:MM:SS``, rounded up to five minutes."""
    minutes = -(-int(seconds_) // 300) * 5
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"
