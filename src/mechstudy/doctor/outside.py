"""Checks of the Slurm cluster and the model hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping

from mechstudy.doctor.check import Check

_SECONDS = 5.0
_COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")


def slurm() -> list[Check]:
    """Slurm's commands, whether its controller answers, and whether it keeps accounts."""
    present = [name for name in _COMMANDS if shutil.which(name) is not None]
    if not present:
        return [Check("Slurm", "ok", "no Slurm here: `mechstudy run` needs none")]
    if missing := [name for name in _COMMANDS if name not in present]:
        return [
            Check(
                "Slurm", "warn", f"{', '.join(missing)} not on PATH, {', '.join(present)} are", "load the slurm module"
            )
        ]
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
    if any(
        environment.get(name, "").lower() in ("1", "true", "yes", "on")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        return [Check("model hub", "ok", "offline, as HF_HUB_OFFLINE asks; fetched models, path: and gguf: work")]
    address = environment.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urllib.request.urlopen(f"{address}/api/models?limit=1", timeout=_SECONDS) as reply:
            status = reply.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        fix = "hf: models must be fetched elsewhere; path:, gguf: and pypi: work. Set HF_HUB_OFFLINE=1 to avoid waiting"
        return [Check("model hub", "ok", f"{address} is not reached ({reason})", fix)]
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
    return done.returncode, " / ".join((done.stderr or done.stdout).split("\n")).strip(
        " /"
    ) or f"exit {done.returncode}"
