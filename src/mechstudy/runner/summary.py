"""`summary.json` of a run, and the findings printed at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechstudy.core.jsonio import write_json_atomic
from mechstudy.runner.results import RunResult
from mechstudy.runner.study_run import OpenedStudy
from mechstudy.study.run_folder import SUMMARY, RunFolder


def write_summary(run: Path, study: Mapping[str, Any], result: RunResult) -> dict[str, Any]:
    """Writes a run's ``summary.json`` from the artifacts and returns it. ``study``: as `study_dict` gives it.

    ``wall_seconds`` is of the last run that ran a unit: a run that finds everything done does not change it.
    """
    from mechstudy.report.summary import build_summary
    from mechstudy.study.phases.report import unit_record

    folder = RunFolder(run)
    wall = result.seconds
    if not result.ran:
        wall = folder.read_summary().get("wall_seconds") or wall
    units: list[dict[str, Any]] = []
    for unit in result.units:
        record: dict[str, Any] = {"name": unit.name, "phase": unit.phase, "status": unit.status, "reason": unit.reason}
        if unit.artifact is not None:
            record = {**unit_record(unit.name, unit.artifact), **record}
        units.append(record)
    peak = max((record.get("peak_rss_bytes") or 0 for record in units), default=0)
    summary = build_summary(dict(study), artifact_folders(result), units, round(wall, 3), peak)
    write_json_atomic(folder.path / SUMMARY, summary)
    return summary


def artifact_folders(result: RunResult) -> dict[str, Path]:
    """unit -> folder of every unit that is done."""
    return {u.name: u.artifact.path for u in result.units if u.artifact is not None and u.status == "done"}


def findings_of(opened: OpenedStudy, result: RunResult) -> list[str]:
    """The findings in plain words, from the summary as written."""
    from mechstudy.report.summary import findings

    return findings(RunFolder(opened.folder).read_summary(), artifact_folders(result))
