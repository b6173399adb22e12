"""Jobs in the queue, from one squeue call, and jobs that ended, from sacct where a site has it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from mechstudy.runner.slurm.commands import SlurmError, call

_FORMAT = "%F|%K|%T|%r|%N|%M|%l|%S|%E|%k"
_ACCOUNTING = (
    "JobID", "State", "ExitCode", "ElapsedRaw", "CPUTimeRAW", "TotalCPU", "AllocTRES", "MaxRSS", "Start", "End",
    "NodeList", "Eligible",
)  # fmt: skip
_UNKNOWN = re.compile(r"invalid job id", re.IGNORECASE)


@dataclass(frozen=True)
class Queued:
    """One job, or one element of an array, that has not ended. ``state``: PENDING, RUNNING, COMPLETING, ..."""

    job: str
    task: int | None
    state: str
    reason: str
    node: str
    elapsed: str
    limit: str
    start: str
    dependency: str
    comment: str

    @property
    def id(self) -> str:
        """``12_3``, or ``12`` of a job that is no array."""
        return self.job if self.task is None else f"{self.job}_{self.task}"

    @property
    def seconds(self) -> float | None:
        """Seconds since it started, this time."""
        with suppress(ValueError):  # INVALID, as it begins
            return None if self.waits else _seconds(self.elapsed)
        return None

    @property
    def waits(self) -> bool:
        """Whether it waits in the queue."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def never(self) -> bool:
        """It waits for a job that has failed or is gone, so it will not run by itself."""
        return self.waits and self.reason == "DependencyNeverSatisfied"


def queue_of(jobs: Iterable[str], comment: str) -> list[Queued]:
    """This user's jobs that are among ``jobs`` or whose comment begins with ``comment``; in one call.

    Raises:
        SlurmError: the queue cannot be read.
    """
    ids = set(jobs)
    printed = call("squeue", "-h", "-r", "-u", str(os.getuid()), "-o", _FORMAT)
    rows = [row for line in printed.splitlines() if (row := _parse(line)) is not None]
    return [row for row in rows if row.job in ids or (comment and row.comment.startswith(comment))]


def _parse(line: str) -> Queued | None:
    parts = [part.strip() for part in line.split("|", 9)]
    if len(parts) != 10 or not parts[0].isdecimal():
        return None
    job, task, *rest = parts
    return Queued(job, int(task) if task.isdecimal() else None, *rest)


@dataclass(frozen=True)
class Accounted:
    """One run of a job by Slurm's accounting; a requeued job has one for each time it ran.

    ``job`` is ``12_3``; seconds of wall time and of CPU time held and used; bytes at the peak where they were measured;
    ``start``, ``end`` and ``eligible`` (when it could have begun) as the cluster writes them.
    """

    job: str
    state: str
    exit_code: int = 0
    signal: int = 0
    seconds: float = 0.0
    cpu_seconds_held: float = 0.0
    cpu_seconds_used: float = 0.0
    cpus: int = 0
    gpus: int = 0
    memory_bytes: int = 0
    peak_rss_bytes: int | None = None
    start: str = ""
    end: str = ""
    node: str = ""
    eligible: str = ""

    @property
    def waited(self) -> float:
        """Seconds in the queue after everything it depends on had ended; 0 where the cluster does not say."""
        with suppress(ValueError):  # "Unknown", "None"
            return max(
                0.0, (datetime.fromisoformat(self.start) - datetime.fromisoformat(self.eligible)).total_seconds()
            )
        return 0.0


def accounting(jobs: Iterable[str]) -> list[Accounted] | None:
    """Every run of these jobs, requeued ones too (``sacct -D``); None where there is no accounting to ask."""
    wanted = sorted(set(jobs), key=int)
    if not wanted or shutil.which("sacct") is None:
        return [] if not wanted else None
    runs: list[Accounted] = []
    try:
        for start in range(0, len(wanted), 200):
            some = ",".join(wanted[start : start + 200])
            words = ("sacct", "-D", "-n", "-P", "-j", some, "-o", ",".join(_ACCOUNTING))
            runs.extend(_accounted(call(*words, attempts=1)))
    except SlurmError:  # a site without slurmdbd has the command all the same
        return None
    return runs


def _accounted(printed: str) -> list[Accounted]:
    """One entry for each job line; the peak memory stands in the lines of its steps, which come after it."""
    runs: list[Accounted] = []
    for line in printed.splitlines():
        parts = line.split("|")
        if len(parts) != len(_ACCOUNTING):
            continue
        row = dict(zip(_ACCOUNTING, parts, strict=True))
        id, _, step = row["JobID"].partition(".")
        if "[" in id:  # elements that never became jobs of their own
            continue
        if not step:
            runs.append(_job(id, row))
        elif runs and runs[-1].job == id and (peak := _bytes(row["MaxRSS"])):
            last = runs[-1]
            runs[-1] = replace(last, peak_rss_bytes=max(peak, last.peak_rss_bytes or 0))
    return runs


def _job(id: str, row: dict[str, str]) -> Accounted:
    tres = dict(part.split("=", 1) for part in row["AllocTRES"].split(",") if "=" in part)
    code, _, signal = row["ExitCode"].partition(":")
    return Accounted(
        id,
        row["State"].split()[0] if row["State"] else "",
        int(code or 0),
        int(signal or 0),
        float(row["ElapsedRaw"] or 0),
        float(row["CPUTimeRAW"] or 0),
        _seconds(row["TotalCPU"]),
        int(tres.get("cpu", 0)),
        int(tres.get("gres/gpu", 0)),
        _bytes(tres.get("mem", "")) or 0,
        None,
        row["Start"],
        row["End"],
        row["NodeList"],
        row["Eligible"],
    )


def _bytes(text: str) -> int | None:
    """``1024K``, ``3.5G`` as bytes."""
    match = re.fullmatch(r"([\d.]+)([KMGTP]?)[nc]?", text.strip())
    return int(float(match[1]) * 1024 ** " KMGTP".index(match[2] or " ")) if match else None


def _seconds(text: str) -> float:
    """``[D-][HH:]MM:SS[.mmm]`` as seconds."""
    days, dash, clock = text.rpartition("-")
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part or 0)
    return total + 86400 * int(days) if dash else total
