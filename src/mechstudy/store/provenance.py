"""Where and with what a result was made. Computed once per process, on demand; never raises."""

from __future__ import annotations

import copy
import functools
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mechstudy
from mechstudy.machine.commands import output_of
from mechstudy.machine.memory import total_memory_bytes
from mechstudy.machine.numerics import gpu, libraries, nvidia_smi, threads

__all__ = [
    "cpu",
    "git_state",
    "nvidia_smi",
    "package_index",
    "provenance",
    "slurm_environment",
    "without_absolute_path",
]

_SECRET = re.compile(r"JWT|TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY", re.IGNORECASE)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def provenance() -> dict[str, Any]:
    """Python, platform, packages, git state, CPU, memory, modules, GPUs, SLURM_*, host, arguments; and as they are now:
    threads, the GPU's driver and CUDA, BLAS and what else numbers depend on.

    What cannot be found out is None. Holds no absolute paths (they are cut to what follows the working
    folder, or to their last part) and no SLURM variable that looks like a secret (SLURM_JWT).
    """
    now: dict[str, Callable[[], Any]] = {"threads": threads, "gpu": gpu, "libraries": libraries}
    return copy.deepcopy(_provenance()) | _ask(now)


@functools.cache
def _provenance() -> dict[str, Any]:
    probes: dict[str, Callable[[], Any]] = {
        "mechstudy": lambda: mechstudy.__version__,
        "python": platform.python_version,
        "platform": platform.platform,
        "packages": _packages,
        "git": lambda: git_state(Path(mechstudy.__file__)),
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
    found: dict[str, Any] = {}
    for name, probe in probes.items():
        try:
            found[name] = probe()
        except Exception:  # a manifest without one line is better than a run that failed for it
            found[name] = None
    return found


def without_absolute_path(text: str) -> str:
    """``/home/ada/study/runs/a.yaml`` as ``runs/a.yaml`` seen from /home/ada/study, else ``.../a.yaml``."""
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
    from importlib.metadata import distributions

    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


@functools.cache
def cpu() -> dict[str, Any]:
    """Model, cores, cores this process may use, and the instructions that matter."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    has = set(flags.group(1).split()) if flags else set()
    return {
        "model": model.group(1) if model else platform.processor() or platform.machine(),
        "count": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in _CPU_FLAGS if flag in has],
    }


def _modules() -> list[str]:
    loaded = os.environ.get("LOADEDMODULES")
    if loaded:
        return [name for name in loaded.split(":") if name]
    if "MODULESHOME" not in os.environ and "LMOD_CMD" not in os.environ:
        return []
    listed = output_of("bash", "-lc", "module -t list 2>&1") or ""
    return [line.strip() for line in listed.splitlines() if line.strip() and not line.endswith(":")]


def package_index(packages: Mapping[str, str]) -> str | None:
    """Where pip finds torch's builds for one kind of machine (``2.6.0+cu124``); None where PyPI has what was used."""
    _, plus, build = packages.get("torch", "").partition("+")
    return f"https://download.pytorch.org/whl/{build}" if plus and build else None
