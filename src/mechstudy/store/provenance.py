"""How a result was made: code, packages, machine, arguments, and the processes that worked on it in turn."""

from __future__ import annotations

import copy
import functools
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from mechstudy._version import __version__
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.machine.hardware import cpu, gpu, libraries, nvidia_smi, output_of, threads
from mechstudy.machine.memory import total_memory_bytes

_SECRET = re.compile(r"JWT|TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY", re.IGNORECASE)
SESSIONS = "sessions.json"
_SLURM = {
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "restart": "SLURM_RESTART_COUNT",
    "nodes": "SLURM_JOB_NODELIST",
    "partition": "SLURM_JOB_PARTITION",
}


def current_provenance() -> dict[str, Any]:
    """What a manifest records about how a result was made. Never raises; what cannot be found out is None.

    Fixed for the process: Python, platform, packages, git state, CPU, memory, modules, GPUs, SLURM_*, host, arguments.
    At the time of the call: threads, the GPU's driver and CUDA, BLAS and its settings.
    Holds no absolute paths (they are cut to what follows the working folder, or to their last part) and no SLURM
    variable that looks like a secret (SLURM_JWT).
    """
    now: dict[str, Callable[[], Any]] = {"threads": threads, "gpu": gpu, "libraries": libraries}
    return copy.deepcopy(fixed_provenance()) | _ask(now)


@functools.cache
def fixed_provenance() -> dict[str, Any]:
    """The part of `current_provenance` that does not change within a process, collected once."""
    probes: dict[str, Callable[[], Any]] = {
        "mechstudy": lambda: __version__,
        "python": platform.python_version,
        "platform": platform.platform,
        "packages": _packages,
        "git": lambda: git_state(Path(__file__)),
        "cpu": cpu,
        "memory_bytes": total_memory_bytes,
        "modules": _modules,
        "nvidia_smi": nvidia_smi,
        "slurm": slurm_environment,
        "hostname": platform.node,
        "argv": lambda: [without_absolute_path(word) for word in sys.argv],
    }
    return _ask(probes)


def _ask(probes: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for name, probe in probes.items():
        try:
            answers[name] = probe()
        except Exception:  # a manifest without one line is better than a failed run
            answers[name] = None
    return answers


def without_absolute_path(text: str) -> str:
    """``/home/ada/study/runs/a.yaml`` becomes ``runs/a.yaml`` in /home/ada/study, else ``.../a.yaml``."""
    prefix, equals, value = text.rpartition("=") if "=/" in text else ("", "", text)
    if not value.startswith("/"):
        return text
    path = Path(value)
    try:
        short = path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        short = f".../{path.name}"
    return f"{prefix}{equals}{short}"


def git_state(file: Path) -> dict[str, Any] | None:
    """``{commit, dirty}`` of the repository that tracks this file; None where none does."""
    folder = file.resolve().parent
    if output_of("git", "-C", str(folder), "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = output_of("git", "-C", str(folder), "rev-parse", "HEAD")
    status = output_of("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def slurm_environment() -> dict[str, str]:
    """The SLURM_* variables, without secrets."""
    return {
        name: without_absolute_path(value)
        for name, value in sorted(os.environ.items())
        if name.startswith("SLURM_") and not _SECRET.search(name)
    }


def _packages() -> dict[str, str]:
    versions = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def _modules() -> list[str]:
    loaded = os.environ.get("LOADEDMODULES")
    if loaded:
        return [name for name in loaded.split(":") if name]
    if "MODULESHOME" not in os.environ and "LMOD_CMD" not in os.environ:
        return []
    listed = output_of("bash", "-lc", "module -t list 2>&1") or ""
    return [line.strip() for line in listed.splitlines() if line.strip() and not line.endswith(":")]


def package_index(packages: Mapping[str, str]) -> str | None:
    """The index with torch's build for this kind of machine (``2.6.0+cu124``); None where PyPI has it."""
    _, plus, build = packages.get("torch", "").partition("+")
    return f"https://download.pytorch.org/whl/{build}" if plus and build else None


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
