"""A study as it was submitted: its units, their options and the study file, in a folder of the submission.

Jobs read this and not the study file, so that later edits change no submitted job.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechstudy._version import __version__
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path
from mechstudy.core.jsonio import read_json
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.run import Run
from mechstudy.store.artifacts import artifact_id
from mechstudy.study.dag import Graph
from mechstudy.study.slurm_config import SlurmConfig
from mechstudy.study.unit import Unit
from mechstudy.study.units import unit_as_json, unit_from_json

SLURM = "slurm"
FROZEN = "frozen.json"
LOGS = "logs"
REFUSALS = "refused"  # why jobs ended before their worker began, by job
STUDY = "study.yaml"


@dataclass(frozen=True)
class Frozen:
    """One submission's study.

    ``run`` is the run's folder; ``file`` and ``overrides`` opened the study; ``versions`` are the units' phase versions
    at submission.
    """

    run: Path
    number: int
    file: Path
    overrides: tuple[str, ...]
    study: Mapping[str, Any]
    units: Sequence[Unit]
    options: RunOptions
    slurm: SlurmConfig
    versions: Mapping[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The submission's folder."""
        return folder_of(self.run, self.number)

    def open_run(self) -> Run:
        """Its units against the run's folder."""
        return Run(self.run, self.units, self.options)


def folder_of(run: Path, number: int) -> Path:
    """``<run>/slurm/001``; number 0 is a dry run."""
    return run / SLURM / (f"{number:03d}" if number else "dry-run")


def freeze(frozen: Frozen) -> None:
    """Writes the folder of a submission: a copy of the study file, and everything a job needs."""
    content = {
        "mechstudy": __version__,
        "number": frozen.number,
        "file": str(frozen.file.resolve()),
        "overrides": list(frozen.overrides),
        "study": dict(frozen.study),
        "options": frozen.options.as_json(),
        "slurm": frozen.slurm.canonical(),
        "units": [unit_as_json(unit) for unit in frozen.units],
    }
    frozen.folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(frozen.folder / STUDY) as temporary:
        shutil.copyfile(frozen.file, temporary)
    with atomic_path(frozen.folder / FROZEN) as temporary:  # keeps infinities, unlike our other files
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def thaw(run: Path, number: int) -> Frozen:
    """Reads what `freeze` wrote.

    Raises:
        MechstudyError: it is not there, or not whole.
    """
    folder = folder_of(run, number)
    try:
        content = read_json(folder / FROZEN)
        return Frozen(
            run=run,
            number=int(content["number"]),
            file=Path(content["file"]),
            overrides=tuple(content["overrides"]),
            study=content["study"],
            units=[unit_from_json(item) for item in content["units"]],
            options=RunOptions.from_json(content["options"]),
            slurm=SlurmConfig.model_validate(content["slurm"]),
            versions={item["name"]: int(item["version"]) for item in content["units"]},
        )
    except (MechstudyError, KeyError, TypeError, ValueError) as error:
        raise MechstudyError(
            "what was submitted cannot be read",
            where=str(folder),
            facts={"cause": str(error)},
            fix="`mechstudy cancel` and submit again: what is finished is kept",
        ) from error


def identities(units: Sequence[Unit]) -> dict[str, str]:
    """Unit -> a digest of its own spec and those of everything that it may read."""
    graph = Graph(units)
    digests: dict[str, str] = {}
    for name in graph.order:
        unit = graph.units[name]
        inputs = {source: digests[source] for source in unit.sources}
        inputs |= {f"gate {gate}": digests[gate] for gate in unit.gates}
        digests[name] = artifact_id(unit.phase.name, unit.phase.version, unit.canonical_spec, inputs)
    return digests
