"""Slurm's reason codes and states in words."""

from __future__ import annotations

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
