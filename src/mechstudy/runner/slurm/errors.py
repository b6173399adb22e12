"""Slurm's refusals, explained at the field of the study that caused them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mechstudy.core.errors import MechstudyError
from mechstudy.runner.slurm.commands import SlurmError, partitions
from mechstudy.study.slurm_config import SlurmConfig


@dataclass(frozen=True)
class _Cause:
    """A pattern of Slurm's words; the field of `SlurmConfig` it is about, empty for several; and what to do."""

    pattern: str
    field: str
    fix: str


_CAUSES = (
    _Cause(r"invalid partition|partition.*(not.*(exist|available)|inactive|down)", "partition",
           "name a partition of this cluster"),
    _Cause(r"invalid account|account/partition combination", "account",
           "an account that may use it: `sacctmgr show associations user=$USER format=account,partition,qos`"),
    _Cause(r"invalid qos|qos specification", "qos", "a QOS of your account, or none"),
    _Cause(r"(job submit limit|submit ?job ?limit|maxsubmit|violates accounting/qos policy|exceed.*limit.*(account|qos)"
           r"|assoc\w*limit|qos\w*limit)", "account",
           "the account or QOS is at its limit: wait for jobs to end (`squeue -u $USER`), use another account or qos, "
           "or ask for less (time, gpus, cpus); then `mechstudy resume`"),
    _Cause(r"time limit|--time", "time", "a time limit that the partition allows: `sinfo -o '%P %l'`"),
    _Cause(r"generic resource|\bgres\b|\bgpus?\b", "gpus", "GPUs that the partition has: `sinfo -o '%P %G'`"),
    _Cause(r"memory", "memory", "less memory, or a partition with more: `sinfo -o '%P %m'`"),
    _Cause(r"more processors|cpu count|node configuration is not available|nodes? count", "",
           "less in cpus, memory or gpus, or another partition: `sinfo -o '%P %c %m %G'`"),
    _Cause(r"invalid (feature|constraint)|unrecognized option|invalid option|unknown option", "extra",
           "options of this sbatch only: `sbatch --help`"),
    _Cause(r"job array (specification|index)", "concurrent", "fewer units at once"),
)  # fmt: skip


def explained(
    error: SlurmError, config: SlurmConfig, phase: str, where: Callable[[str], str | None]
) -> MechstudyError:  # fmt: skip
    """The refusal at the field that caused it, quoting Slurm; the error itself where the cause is unknown.

    Args:
        where: the file and line at which a field of ``compute.slurm`` (dotted) stands.
    """
    if error.maybe_done or not error.said:  # busy, away, or not there: no field of the study is to blame
        return error
    cause = next((cause for cause in _CAUSES if re.search(cause.pattern, error.said, re.IGNORECASE)), None)
    if cause is None:
        return MechstudyError(
            f"Slurm refused the jobs of phase {phase}",
            where=where(""),
            facts={"Slurm": error.said, **error.facts},
            fix="change compute.slurm accordingly, then submit again",
        )
    facts = {"Slurm": error.said, "phase": phase}
    if cause.field == "partition" and (there := partitions()):
        facts["partitions"] = ", ".join(there)
    field, value = _field(cause.field, config, phase)
    what = f"compute.slurm{field} ({value}): Slurm refused the job"
    return MechstudyError(what, where=where(field.removeprefix(".")), facts=facts, fix=cause.fix)


def _field(name: str, config: SlurmConfig, phase: str) -> tuple[str, str]:
    """The field that sets a phase's value (``.phases.train.time``), and the value; all sizes for an empty ``name``."""
    asked = config.of_phase(phase)
    if not name:
        sizes = {size: getattr(asked, size) for size in ("partition", "cpus", "memory", "gpus")}
        return "", ", ".join(f"{size} {value}" for size, value in sizes.items() if value is not None)
    own, value = config.phases.get(phase), getattr(asked, name)
    inside = own is not None and getattr(own, name, None) is not None
    words = " ".join(value) if isinstance(value, tuple) else value
    return f".phases.{phase}.{name}" if inside else f".{name}", str(words or "none is set")
