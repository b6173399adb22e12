"""Slurm's commands, each with a time limit, a few attempts, and an error that quotes Slurm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.core.variables import whole_variable

SECONDS = 30  # one call may take; $MECHSTUDY_SLURM_SECONDS is another number
ATTEMPTS = 3
PAUSE = 2.0  # seconds before the next attempt, then twice that
_BUSY = re.compile(
    r"unable to contact slurm controller|socket timed out|connection refused|connection timed out|zero bytes were"
    r"|temporarily unable|communication connection failure|resource temporarily unavailable",
    re.IGNORECASE,
)
_UNKNOWN_JOB = re.compile(r"invalid job id|no job found|unknown job", re.IGNORECASE)


# Slurm puts variables above the #SBATCH lines of a script, and squeue and sacct read their defaults from others.
_OF_SLURM = re.compile(r"(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SACCTMGR|SCANCEL|SCONTROL|SINFO|SPRIO|SSTAT|PMIX?)_")
_NEEDED = ("SLURM_CONF", "SLURM_JWT", "SLURM_SACK_SOCKET")  # where Slurm is, and who asks
# Of the job that a submitting shell is in, beside Slurm's own: its devices are not those of another job.
_OF_OUTER_JOB = (
    "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK",
)  # fmt: skip
# Of a process that torchrun started: a job that inherits them waits for ranks that are not there.
_OF_TORCHRUN = re.compile(
    r"(RANK|LOCAL_RANK|GROUP_RANK|ROLE_RANK|ROLE_NAME|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_WORLD_SIZE|ROLE_WORLD_SIZE"
    r"|MASTER_ADDR|MASTER_PORT|TORCHELASTIC_\w+)$"
)
_OF_REQUESTS = re.compile(r"SBATCH_|SLURM_CLUSTERS$")


class SlurmError(MechstudyError):
    """A command of Slurm failed. ``said``: what it wrote; ``maybe_done``: it may have worked all the same."""

    said: str = ""
    maybe_done: bool = False


def is_there() -> bool:
    """Whether this machine has sbatch."""
    return shutil.which("sbatch") is not None


def require() -> None:
    """Refuses a machine that is no login node of a Slurm cluster."""
    if not is_there():
        raise MechstudyError(
            "there is no sbatch on this machine",
            facts={"PATH": os.environ.get("PATH", "")},
            fix="submit from a login node of the cluster, or load its slurm module; `mechstudy run` needs no Slurm",
        )


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of Slurm's commands, and so of jobs: without what changes requests, answers, or is another job's.

    What stays of Slurm's is where its configuration and credentials are.
    """
    dropped = (_OF_SLURM, _OF_TORCHRUN)
    kept = {
        name: value
        for name, value in variables.items()
        if name in _NEEDED or not any(pattern.match(name) for pattern in dropped)
    }
    if job := variables.get("SLURM_JOB_ID"):
        for name in _OF_OUTER_JOB:
            kept.pop(name, None)
        if job in Path(kept.get("TMPDIR", "")).name:  # deleted when that job ends
            del kept["TMPDIR"]
    return kept


def ignored_requests(variables: Mapping[str, str] = os.environ) -> list[str]:
    """``NAME=value`` of the variables that would have changed what jobs ask for."""
    return [f"{name}={value}" for name, value in sorted(variables.items()) if _OF_REQUESTS.match(name)]


def call(*words: str, attempts: int = ATTEMPTS) -> str:
    """What a command prints, whatever the user's variables are. A controller that is busy or away is asked again.

    Raises:
        SlurmError: it refused (its words are quoted), is not there, or did not answer.
    """
    limit = whole_variable(os.environ, "MECHSTUDY_SLURM_SECONDS", SECONDS, least=1)
    for attempt in range(attempts):
        try:
            done = subprocess.run(
                words, capture_output=True, timeout=limit, check=False, stdin=subprocess.DEVNULL, env=environment()
            )
        except FileNotFoundError:
            raise _error(words, f"there is no {words[0]} on this machine") from None
        except subprocess.TimeoutExpired:
            error = _error(words, f"{words[0]} did not answer in {limit} seconds", maybe_done=True)
        else:
            if done.returncode == 0:
                return done.stdout.decode(errors="replace")
            lines = (done.stderr or done.stdout).decode(errors="replace").splitlines()
            said = " / ".join(line.strip() for line in lines if line.strip()) or f"exit status {done.returncode}"
            if _BUSY.search(said) is None:
                raise _error(words, f"{words[0]} refused: {said}", said)
            error = _error(words, f"Slurm's controller cannot be reached: {said}", said, maybe_done=True)
        if attempt + 1 < attempts:
            time.sleep(min(limit, PAUSE) * 2**attempt)
    raise error


def _error(words: Sequence[str], what: str, said: str = "", *, maybe_done: bool = False) -> SlurmError:
    away = "try again in a few minutes; `scontrol ping` says whether it is up, and the cluster's staff know why not"
    fix = away if maybe_done else "load the cluster's slurm module" if not said else None
    error = SlurmError(what, facts={"command": " ".join(words)}, fix=fix)
    error.said, error.maybe_done = said, maybe_done
    return error


def submit(script: Path, *options: str) -> str:
    """Hands a script to sbatch, once, and returns the job's id.

    Raises:
        SlurmError: refused; with ``maybe_done`` it may have arrived all the same, and the queue says whether.
    """
    printed = call("sbatch", "--parsable", *options, str(script), attempts=1)
    lines = [line for line in printed.splitlines() if line.strip()]
    job = (lines[-1] if lines else "").partition(";")[0].strip()
    if not job.isdecimal():
        error = SlurmError("sbatch printed no job id", facts={"printed": printed.strip()[:500]})
        error.maybe_done = True
        raise error
    return job


def cancel(jobs: Sequence[str]) -> None:
    """Cancels jobs or array elements (``12_3``); those that have ended already are ignored."""
    for start in range(0, len(jobs), 200):
        try:
            call("scancel", *jobs[start : start + 200])
        except SlurmError as error:
            if not _UNKNOWN_JOB.search(error.said):
                raise


def requeue(job: str) -> None:
    """Puts a job, or one element of an array, back into the queue."""
    call("scontrol", "requeue", job)


def depend(job: str, dependency: str) -> bool:
    """Makes a waiting job depend on others (``afterok:12:13``, or nothing). False where it no longer waits."""
    try:
        call("scontrol", "update", f"JobId={job}", f"Dependency={dependency}")
    except SlurmError as error:
        if _UNKNOWN_JOB.search(error.said) or re.search(r"no longer pending|already", error.said, re.IGNORECASE):
            return False
        raise
    return True


def state_of(job: str) -> str | None:
    """A job's state in Slurm's words (RUNNING, CANCELLED, ...); None where Slurm does not know it, or answer."""
    with suppress(SlurmError):
        match = re.search(r"\bJobState=(\S+)", call("scontrol", "-o", "show", "job", job))
        return match[1] if match else None
    return None


def max_array_size() -> int:
    """One more than the largest index of an array; Slurm's own default where it cannot be asked."""
    with suppress(SlurmError):
        if match := re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE):
            return max(1, int(match[1]))
    return 1001


def partitions() -> list[str]:
    """Names of the cluster's partitions; none where it cannot be asked."""
    with suppress(SlurmError):
        return sorted({line.strip().rstrip("*") for line in call("sinfo", "-h", "-o", "%P", attempts=1).splitlines()})
    return []
