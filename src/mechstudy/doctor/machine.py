"""Checks of Python, memory, cores, drivers, the Slurm cluster and the model hub, without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from mechstudy.core.sizes import human
from mechstudy.machine import cgroup
from mechstudy.machine.hardware import cpu, nvidia_smi
from mechstudy.machine.memory import available_memory_bytes, total_memory_bytes

Status = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Check:
    """``found`` is the finding; ``warn``: works, but worse than it could; ``bad``: a study will fail here."""

    name: str
    status: Status
    found: str
    fix: str = ""


_LITTLE = 4e9  # bytes; the smallest studies need about 2 GB
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def python() -> list[Check]:
    """The interpreter, and the packages that decide speed."""
    versions = [f"Python {platform.python_version()}"]
    missing = []
    for name in ("torch", "transformers", "numba"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    found = ", ".join(versions)
    if missing:
        return [Check("python", "bad", f"{found}; missing: {', '.join(missing)}", "pip install mechstudy")]
    return [Check("python", "ok", found)]


def memory() -> list[Check]:
    """Available memory, within the limit of a cgroup, and swap in use."""
    total, available, limit = total_memory_bytes(), available_memory_bytes(), cgroup.memory_limit()
    text = f"{human(available)} available of {human(total)}"
    if limit is not None and limit < total:
        text += f"; this job or container may use {human(limit)}"
    swap = psutil.swap_memory()
    if swap.total and swap.used > 0.5 * swap.total:
        fix = "stop other processes: a study that swaps is a hundred times slower"
        return [Check("memory", "warn", f"{text}; {human(swap.used)} of {human(swap.total)} swap in use", fix)]
    if available < _LITTLE:
        fix = "stop other processes, or ask for more (compute.slurm.memory); `mechstudy plan` shows what a study needs"
        return [Check("memory", "warn", text, fix)]
    return [Check("memory", "ok", text)]


def cores(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Usable cores beside all cores and the threads that libraries would start."""
    described, usable, quota = cpu(), cgroup.usable_cores(), cgroup.cpu_quota()
    flags = [flag for flag in described["flags"] if flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2")]
    text = f"{described['model']}: {usable:g} of {described['count']} cores may be used"
    text += f" (a quota of {quota:g})" if quota is not None and quota < described["usable"] else ""
    text += f"; {', '.join(flags) or 'no AVX2'}"
    checks = [Check("cores", "ok", text)]
    if not flags:
        checks = [Check("cores", "warn", text, "kernels of dictionary training are slow without AVX2")]
    if quota is not None and quota < 0.95 * described["usable"]:
        fix = f"compute.threads: {max(1, int(quota))} (more threads would be stopped within each tenth of a second)"
        checks.append(Check("CPU quota", "warn", f"{quota:g} cores' worth of {described['usable']} visible cores", fix))
    asked = environment.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > usable:
        fix = "unset it, or set compute.threads"
        checks.append(Check("OMP_NUM_THREADS", "warn", f"{asked} threads on {usable:g} cores", fix))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1.5 * described["count"]:
        fix = "wait, or ask for a whole node: timings and speed suffer"
        checks.append(Check("load", "warn", f"{load:.1f} processes want {described['count']} cores", fix))
    return checks


def huge_pages() -> list[Check]:
    """Whether large arrays get huge pages, which save a tenth of dictionary training's time on CPUs."""
    if not _HUGE_PAGES.exists():
        return []
    now = _HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
    if now == "never":
        fix = "an administrator can: echo madvise > " + str(_HUGE_PAGES)
        return [Check("huge pages", "warn", "never: dictionary training on the CPU is slower", fix)]
    return [Check("huge pages", "ok", now)]


def gpu_driver() -> list[Check]:
    """GPUs as the driver reports them."""
    if shutil.which("nvidia-smi") is None:
        return [Check("GPU driver", "ok", "no nvidia-smi here: everything runs on the CPU")]
    listing = nvidia_smi()
    if listing is None:
        fix = "run nvidia-smi: its message says why; studies use the CPU"
        return [Check("GPU driver", "warn", "nvidia-smi fails", fix)]
    lines = [line.strip() for line in listing.splitlines() if line.strip()]
    return [Check("GPU driver", "ok", "; ".join(lines[1:] or lines))]


_SECONDS = 5.0
_COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")


def slurm() -> list[Check]:
    """Slurm's commands, whether its controller answers, and whether it keeps accounts."""
    present = [name for name in _COMMANDS if shutil.which(name) is not None]
    if not present:
        return [Check("Slurm", "ok", "no Slurm here: `mechstudy run` needs none")]
    if missing := [name for name in _COMMANDS if name not in present]:
        found = f"{', '.join(missing)} not on PATH, {', '.join(present)} are"
        return [Check("Slurm", "warn", found, "load the slurm module")]
    code, output = _call("sinfo", "-h", "-o", "%P %a %D %c %m %G")
    if code != 0:
        fix = "`mechstudy submit` needs it: ask its administrators; `mechstudy run` works without"
        return [Check("Slurm", "warn", f"the cluster does not answer: {output}", fix)]
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    shown = "; ".join(lines[:6]) + (f"; and {len(lines) - 6} more" if len(lines) > 6 else "")
    checks = [Check("Slurm", "ok", f"answers; partition, state, nodes, CPUs, MB, GPUs: {shown}")]
    code, output = _call("sacct", "-n", "-P", "-X", "-S", "now-1hours", "-o", "JobID")
    if code == 0:
        return [*checks, Check("Slurm accounting", "ok", "sacct answers")]
    fix = "nothing to do: `mechstudy status` and `cost` then use the files of the run"
    return [*checks, Check("Slurm accounting", "ok", f"none ({output})", fix)]


def hub(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Whether models can be fetched. Fetched models, local folders and wheels need no hub."""
    settings = (environment.get(name, "").lower() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    if not {"1", "true", "yes", "on"}.isdisjoint(settings):
        return [Check("model hub", "ok", "offline, as HF_HUB_OFFLINE asks; fetched models, path: and gguf: work")]
    address = environment.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urllib.request.urlopen(f"{address}/api/models?limit=1", timeout=_SECONDS) as reply:
            status = reply.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        fix = (
            "hf: models that are not cached must be fetched elsewhere; path: and gguf: work, pypi: needs a package "
            "index. Set HF_HUB_OFFLINE=1 to avoid waiting"
        )
        return [Check("model hub", "warn", f"{address} is not reached ({reason})", fix)]
    return [Check("model hub", "ok", f"{address} answers ({status})")]


def _call(*words: str) -> tuple[int, str]:
    """Exit status and output; of a failed command its errors in one line."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=2 * _SECONDS, check=False)
    except FileNotFoundError:
        return 127, f"there is no {words[0]}"
    except subprocess.TimeoutExpired:
        return 124, f"no answer in {2 * _SECONDS:.0f} seconds"
    if done.returncode == 0:
        return 0, done.stdout
    errors = " / ".join((done.stderr or done.stdout).split("\n")).strip(" /")
    return done.returncode, errors or f"exit {done.returncode}"
