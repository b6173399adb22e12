"""Sessions: the processes that worked on an artifact one after another, each with its time, host and job."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json, write_json_atomic

SESSIONS = "sessions.json"
_SLURM = {
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "restart": "SLURM_RESTART_COUNT",
    "nodes": "SLURM_JOB_NODELIST",
    "partition": "SLURM_JOB_PARTITION",
}


def this_session(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """``started`` (UTC), ``host``, ``pid`` and, in a job, ``slurm``: its ids, and how often it was requeued."""
    session: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "pid": os.getpid(),
    }
    slurm = {name: environment[variable] for name, variable in _SLURM.items() if environment.get(variable)}
    return session | ({"slurm": slurm} if slurm else {})


def open_session(scratch: Path) -> list[dict[str, Any]]:
    """Records this process as the latest that works on an artifact; returns all sessions, oldest first."""
    sessions = [*read_sessions(scratch), this_session()]
    write_json_atomic(scratch / SESSIONS, sessions)
    return sessions


def read_sessions(scratch: Path) -> list[dict[str, Any]]:
    """The sessions recorded in a scratch folder, oldest first. Earlier versions recorded only start times."""
    with suppress(MechstudyError, TypeError):
        return [{"started": item} if isinstance(item, str) else dict(item) for item in read_json(scratch / SESSIONS)]
    return []


def sessions_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sessions of a published artifact. Manifests of earlier versions describe only the last one."""
    if "processes" in manifest:
        return [dict(session) for session in manifest["processes"]]
    made = manifest.get("provenance") or {}
    environment = {str(name): str(value) for name, value in (made.get("slurm") or {}).items()}
    slurm = {name: environment[variable] for name, variable in _SLURM.items() if variable in environment}
    last = {"started": manifest.get("started"), "host": made.get("hostname")} | ({"slurm": slurm} if slurm else {})
    return [{"started": manifest.get("started")}] * (int(manifest.get("sessions") or 1) - 1) + [last]


def job_of(session: Mapping[str, Any]) -> str | None:
    """Slurm's name of a session's job: ``12_3`` for an element of an array, else ``12``; None outside jobs."""
    slurm = session.get("slurm") or {}
    if slurm.get("array_job") and slurm.get("array_task"):
        return f"{slurm['array_job']}_{slurm['array_task']}"
    return slurm.get("job")
