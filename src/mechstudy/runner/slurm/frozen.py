"""A study as it was submitted: its units, how they run, and the file it came from, in a folder of the submission.

Jobs read this and not the study file, so that what is edited later changes nothing that was submitted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import mechstudy
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path
from mechstudy.core.jsonio import read_json
from mechstudy.runner.run import Run
from mechstudy.runner.run_unit import Options
from mechstudy.store.artifacts import artifact_id
from mechstudy.study.dag import Graph
from mechstudy.study.slurm_config import SlurmConfig
from mechstudy.study.unit import Estimate, Unit

SLURM = "slurm"
FROZEN = "frozen.json"
STUDY = "study.yaml"


@dataclass(frozen=True)
class Frozen:
    """One submission's study. ``run`` is the run's folder, ``file`` and ``overrides`` what it was opened with."""

    run: Path
    number: int
    file: Path
    overrides: tuple[str, ...]
    study: Mapping[str, Any]
    units: Sequence[Unit]
    options: Options
    slurm: SlurmConfig

    @property
    def folder(self) -> Path:
        return folder_of(self.run, self.number)

    @property
    def copy(self) -> Path:
        """The study file as it was."""
        return self.folder / STUDY

    def engine(self) -> Run:
        """Its units against the run's folder."""
        return Run(self.run, self.units, self.options)


def folder_of(run: Path, number: int) -> Path:
    """``<run>/slurm/001``; number 0 is what was only shown."""
    return run / SLURM / (f"{number:03d}" if number else "dry-run")


def freeze(frozen: Frozen) -> None:
    """Writes the folder of a submission: the study file as it is now, and everything a job needs."""
    units = [_unit_as_json(unit) for unit in frozen.units]
    content = {
        "mechstudy": mechstudy.__version__,
        "number": frozen.number,
        "file": str(frozen.file.resolve()),
        "overrides": list(frozen.overrides),
        "study": dict(frozen.study),
        "options": _options_as_json(frozen.options),
        "slurm": frozen.slurm.canonical(),
        "units": units,
    }
    frozen.folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(frozen.copy) as temporary:
        shutil.copyfile(frozen.file, temporary)
    with atomic_path(frozen.folder / FROZEN) as temporary:  # infinities stay what they are, unlike in our other files
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def thaw(run: Path, number: int) -> Frozen:
    """Reads what `freeze` wrote.

    Raises:
        MechstudyError: it is not there, or not whole.
    """
    folder = folder_of(run, number)
    try:
        found = read_json(folder / FROZEN)
        return Frozen(
            run=run,
            number=int(found["number"]),
            file=Path(found["file"]),
            overrides=tuple(found["overrides"]),
            study=found["study"],
            units=[_unit(item) for item in found["units"]],
            options=_options(found["options"]),
            slurm=SlurmConfig.model_validate(found["slurm"]),
        )
    except (MechstudyError, KeyError, TypeError) as error:
        raise MechstudyError(
            "what was submitted cannot be read",
            where=str(folder),
            facts={"cause": str(error)},
            fix="`mechstudy cancel` and submit again: what is finished is kept",
        ) from error


def identities(units: Sequence[Unit]) -> dict[str, str]:
    """unit -> a digest of all that determines it: its own spec and those of everything it may read."""
    graph = Graph(units)
    found: dict[str, str] = {}
    for name in graph.order:
        unit = graph.units[name]
        inputs = {label: found[source] for label, source in unit.inputs.items()}
        inputs |= {f"gate {gate}": found[gate] for gate in unit.gates}
        found[name] = artifact_id(unit.phase, unit.version, unit.spec, inputs)
    return found


def _unit_as_json(unit: Unit) -> dict[str, Any]:
    item = asdict(unit)
    again = _unit(json.loads(json.dumps(item)))
    ids = [artifact_id(u.phase, u.version, u.spec, {}) for u in (unit, again)]
    assert ids[0] == ids[1], f"{unit.name}: its spec does not survive JSON"
    return item


def _unit(item: Mapping[str, Any]) -> Unit:
    lists = {name: tuple(item[name]) for name in ("gates", "discard_patterns")}
    return Unit(**{**item, **lists, "estimate": Estimate(**item["estimate"])})


def _options_as_json(options: Options) -> dict[str, Any]:
    values = {item.name: getattr(options, item.name) for item in fields(options)}
    values.pop("resume")  # checkpoints given by hand are for runs by hand
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _options(found: Mapping[str, Any]) -> Options:
    """Options of this version: what it does not know is left out, what is missing is as by default."""
    known = {item.name for item in fields(Options)}
    values = {name: value for name, value in found.items() if name in known}
    for name in ("base", "profile"):
        if values.get(name) is not None:
            values[name] = Path(values[name])
    return Options(**values)
