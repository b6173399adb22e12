"""Jobs in the queue, from one squeue call, with their states in words."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from mechstudy.runner.slurm.commands import call

_FORMAT = "%F|%K|%T|%r|%N|%M|%k"
_REASONS = {
    "None": "Slurm has not looked at it yet",
    "Priority": "jobs of higher priority come first",
    "Resources": "it is next, once enough nodes, CPUs, memory or GPUs are free",
    "Dependency": "it waits for the phases before it",
    "DependencyNeverSatisfied": "a job it waits for has failed or was cancelled, so it will never start; "
    "`mechstudy resume` submits what it waits for",
    "JobArrayTaskLimit": "as many of its phase run as compute.slurm.concurrent lets",
    "BeginTime": "it was put back into the queue and may start again in a minute or two",
    "JobHeldUser": "it is held: `scontrol release` frees it",
    "JobHeldAdmin": "an administrator holds it",
    "launch failed requeued held": "it could not be started on its node and is held: `scontrol release` tries again",
    "PartitionTimeLimit": "its time limit is longer than the partition allows: lower compute.slurm.time",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "PartitionConfig": "the partition does not have what is asked: see compute.slurm.cpus, memory, gpus and partition",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs now",
    "ReqNodeNotAvail": "a node it needs is down or reserved, often for maintenance",
    "NodeDown": "a node it needs is down",
    "BadConstraints": "no node is as asked: see compute.slurm.partition, gpus, memory, cpus and extra",
    "Reservation": "it waits for its reservation",
    "Licenses": "it waits for a licence",
    "InvalidAccount": "its account is not valid: see compute.slurm.account",
    "InvalidQOS": "its QOS is not valid: see compute.slurm.qos",
    "Prolog": "its node is being made ready",
    "Cleaning": "it was put back into the queue and its node is being cleaned up",
    "AssociationJobLimit": "the account runs as many jobs as it may",
    "QOSJobLimit": "the QOS runs as many jobs as it may",
    "AssociationResourceLimit": "the account holds as many resources as it may",
    "QOSResourceLimit": "the QOS holds as many resources as it may",
    "AssociationTimeLimit": "the account's time is used up",
    "QOSTimeLimit": "the QOS's time is used up",
    "QOSUsageThreshold": "the account's usage is over the QOS's threshold",
    "NodeFail": "its node failed",
    "SystemFailure": "Slurm or its file system failed",
}
_OWNERS = {"Assoc": "the account", "QOS": "the QOS", "Max": "the cluster"}
_RUNNING = {
    "RUNNING": "runs",
    "COMPLETING": "is ending",
    "CONFIGURING": "its node is being made ready",
    "SUSPENDED": "is suspended",
    "STOPPED": "is stopped",
    "SIGNALING": "runs, and is being signalled",
    "STAGE_OUT": "its files are being copied",
}


@dataclass(frozen=True)
class Queued:
    """One job, or one element of an array, that has not ended. ``state``: PENDING, RUNNING, COMPLETING, ..."""

    job: str
    task: int | None
    state: str
    reason: str
    node: str
    elapsed: str
    comment: str

    @property
    def id(self) -> str:
        """``12_3``, or ``12`` of a job that is no array."""
        return self.job if self.task is None else f"{self.job}_{self.task}"

    @property
    def seconds(self) -> float | None:
        """Seconds since it started, this time."""
        with suppress(ValueError):  # INVALID, as it begins
            return None if self.waits else clock_seconds(self.elapsed)
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

    Those of hidden partitions too, whatever the user's SQUEUE_* variables are.

    Raises:
        SlurmError: the queue cannot be read.
    """
    ids = set(jobs)
    printed = call("squeue", "-a", "-h", "-r", "-u", str(os.getuid()), "-o", _FORMAT)
    rows = [row for line in printed.splitlines() if (row := _parse(line)) is not None]
    return [row for row in rows if row.job in ids or (comment and row.comment.startswith(comment))]


def _parse(line: str) -> Queued | None:
    parts = [part.strip() for part in line.split("|", 6)]
    if len(parts) != 7 or not parts[0].isdecimal():
        return None
    job, task, *rest = parts
    return Queued(job, int(task) if task.isdecimal() else None, *rest)


def in_words(state: str, reason: str) -> str:
    """What a queued job is doing: ``waits (Priority): jobs of higher priority come first``."""
    if state in _RUNNING:
        return _RUNNING[state]
    code = reason.split(",")[0].strip().strip("()")
    words = _REASONS.get(code) or _limit(code) or "ask the cluster's staff what that means"
    shown = f"waits ({code})" if state == "PENDING" else f"{state.lower()} ({code})"
    return f"{shown}: {words}"


def _limit(code: str) -> str | None:
    """Of ``AssocGrpCPUMinutesLimit``, ``QOSMaxJobsPerUserLimit`` and their many kin."""
    for prefix, owner in _OWNERS.items():
        if code.startswith(prefix):
            what = "running and waiting jobs" if "Job" in code else "time" if "Minutes" in code else "resources"
            who = " of one user" if "PerUser" in code else ""
            return f"{owner} is at a limit of its {what}{who}"
    return None


def clock_seconds(text: str) -> float:
    """``[D-][HH:]MM:SS[.mmm]`` as seconds."""
    days, dash, clock = text.rpartition("-")
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part or 0)
    return total + 86400 * int(days) if dash else total
