"""Named profiles in the user's config folder: the Slurm settings of a cluster, for every study."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mechstudy.core.config import Lines, load_config_with_lines
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.study.slurm_config import SlurmConfig
from mechstudy.study.study import ComputeConfig


def profiles_folder() -> Path:
    """``~/.config/mechstudy/profiles``, or below ``$XDG_CONFIG_HOME``."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "mechstudy" / "profiles"


def names() -> list[str]:
    """Names of the existing profiles."""
    return sorted(path.stem for path in profiles_folder().glob("*.yaml"))


def resolved(
    compute: ComputeConfig, lines: Lines, name: str | None = None
) -> tuple[SlurmConfig, Callable[[str], str | None]]:
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
        guess = nearest(name, names())
        raise MechstudyError(
            f"there is no profile {name!r}",
            where=str(profiles_folder()),
            facts={"profiles": ", ".join(names()) or "none"},
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
