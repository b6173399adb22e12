"""Provenance of a result: code, packages, machine, job and arguments."""

from __future__ import annotations

import copy
import functools
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from mechstudy._version import __version__
from mechstudy.machine.hardware import cpu, gpu, libraries, nvidia_smi, output_of, threads
from mechstudy.machine.memory import total_memory_bytes

_SECRET = re.compile(r"JWT|TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY", re.IGNORECASE)


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
