"""The Slurm settings of a study: its own over those of a profile; and Slurm's refusals, explained at their fields.

Profiles are files in the user's config folder, one for each cluster.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from mechstudy.core.config import Lines, load_config_with_lines
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.runner.slurm.commands import SlurmError, partitions
from mechstudy.study.slurm_config import SlurmConfig
from mechstudy.study.study import ComputeConfig

Where = Callable[[str], str | None]  # the file and line of a field of ``compute.slurm`` (dotted)
_CAUSES = (  # a pattern of Slurm's words; the field of `SlurmConfig` it is about, empty for several; what to do
    (r"invalid partition|partition.*(not.*(exist|available)|inactive|down)", "partition",
     "name a partition of this cluster"),
    (r"invalid account|account/partition combination", "account",
     "an account that may use it: `sacctmgr show associations user=$USER format=account,partition,qos`"),
    (r"invalid qos|qos specification", "qos", "a QOS of your account, or none"),
    (r"(job submit limit|submit ?job ?limit|maxsubmit|violates accounting/qos policy|exceed.*limit.*(account|qos)"
     r"|assoc\w*limit|qos\w*limit)", "account",
     "the account or QOS is at its limit: wait for jobs to end (`squeue -u $USER`), use another account or qos, "
     "or ask for less (time, gpus, cpus); then `mechstudy resume`"),
    (r"time limit|--time", "time", "a time limit that the partition allows: `sinfo -o '%P %l'`"),
    (r"generic resource|\bgres\b|\bgpus?\b", "gpus", "GPUs that the partition has: `sinfo -o '%P %G'`"),
    (r"memory", "memory", "less memory, or a partition with more: `sinfo -o '%P %m'`"),
    (r"more processors|cpu count|node configuration is not available|nodes? count", "",
     "less in cpus, memory or gpus, or another partition: `sinfo -o '%P %c %m %G'`"),
    (r"invalid (feature|constraint)|unrecognized option|invalid option|unknown option", "extra",
     "options of this sbatch only: `sbatch --help`"),
    (r"job array (specification|index)", "concurrent", "fewer units at once"),
)  # fmt: skip


def profiles_folder() -> Path:
    """``~/.config/mechstudy/profiles``, or below ``$XDG_CONFIG_HOME``."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "mechstudy" / "profiles"


def resolved(compute: ComputeConfig, lines: Lines, name: str | None = None) -> tuple[SlurmConfig, Where]:
    """The Slurm settings of a study, its own values over its profile's, and the file and line of each.

    Args:
        name: replaces ``compute.profile``.

    Raises:
        MechstudyError: there is no such profile, or a mistake in it, at its file and line.
    """
    name = name or compute.profile
    if name is None:
        return compute.slurm, lambda field: lines.where(_study_field(field))
    file = profiles_folder() / f"{name}.yaml"
    if not file.is_file():
        names = sorted(path.stem for path in profiles_folder().glob("*.yaml"))
        guess = nearest(name, names)
        raise MechstudyError(
            f"there is no profile {name!r}",
            where=str(profiles_folder()),
            facts={"profiles": ", ".join(names) or "none"},
            fix=f"did you mean {guess}?" if guess else f"write {file}: partition, account, ... (docs/how-to/slurm.md)",
        )
    profile, profile_lines = load_config_with_lines(file, SlurmConfig)

    def where(field: str) -> str | None:
        if _is_set(compute.slurm, field) or not profile_lines.by_path.get(profile_lines.keys(field)):
            return lines.where(_study_field(field))
        return profile_lines.where(field)

    return compute.slurm.over(profile), where


def _study_field(field: str) -> str:
    return f"compute.slurm.{field}" if field else "compute.slurm"


def _is_set(config: SlurmConfig, field: str) -> bool:
    """Whether the study itself sets the field."""
    parts = field.split(".")
    if parts[0] == "phases" and len(parts) == 3:
        return parts[1] in config.phases and parts[2] in config.phases[parts[1]].model_fields_set
    return parts[0] in config.model_fields_set


def explained(error: SlurmError, config: SlurmConfig, phase: str, where: Where) -> MechstudyError:
    """The refusal at the field that caused it, quoting Slurm; the error itself where the cause is unknown."""
    if error.maybe_done or not error.said:  # busy, away, or not there: no field of the study is to blame
        return error
    causes = ((field, fix) for pattern, field, fix in _CAUSES if re.search(pattern, error.said, re.IGNORECASE))
    name, fix = next(causes, (None, ""))
    if name is None:
        return MechstudyError(
            f"Slurm refused the jobs of phase {phase}",
            where=where(""),
            facts={"Slurm": error.said, **error.facts},
            fix="change compute.slurm accordingly, then submit again",
        )
    facts = {"Slurm": error.said, "phase": phase}
    if name == "partition" and (there := partitions()):
        facts["partitions"] = ", ".join(there)
    field, value = _field(name, config, phase)
    what = f"compute.slurm{field} ({value}): Slurm refused the job"
    return MechstudyError(what, where=where(field.removeprefix(".")), facts=facts, fix=fix)


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
