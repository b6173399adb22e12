"""A finished run as the paper reads it: its summary, and the files of its units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.report.data import UnitFiles
from mechstudy.store.artifacts import Artifact
from mechstudy.study import finished

BEHAVIOURS = 2  # that the text compares
PER_BEHAVIOUR = ("prompts", "baseline", "attribute", "intervene", "verdict")


@dataclass(frozen=True)
class FinishedRun:
    """A run that has everything the paper shows.

    Attributes:
        path: its folder.
        summary: its ``summary.json``.
        artifacts: the newest artifact of each unit, by the unit's name.
        behaviours: the first two of the study that have a verdict, in the study's order.
    """

    path: Path
    summary: Mapping[str, Any]
    artifacts: Mapping[str, Artifact]
    behaviours: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> FinishedRun:
        """Open a run.

        Raises:
            MechstudyError: the folder is not a run's, or a unit that the paper shows has not finished.
        """
        finished.check_run(path)
        artifacts = finished.latest(path)
        summary = path / "summary.json"
        if not summary.is_file():
            raise MechstudyError(
                "the run has no summary.json, so it has not finished",
                where=str(path),
                fix=f"mechstudy run {path / 'study.yaml'} --out {path}",
            )
        content = read_json(summary)
        behaviours = tuple(b for b in content["baseline"] if f"verdict[{b}]" in artifacts)[:BEHAVIOURS]
        if len(behaviours) < BEHAVIOURS:
            raise MechstudyError(
                f"the paper compares {BEHAVIOURS} behaviours with verdicts, and this run has {len(behaviours)}",
                where=str(path),
                facts={"behaviours": ", ".join(content["baseline"]) or "none"},
                fix="a run of examples/demo.yaml: make demo",
            )
        needed = ["model", "features", *(f"{phase}[{b}]" for b in behaviours for phase in PER_BEHAVIOUR)]
        missing = [unit for unit in needed if unit not in artifacts]
        if not content["dictionaries"]:
            missing.append("train")
        if missing:
            raise MechstudyError(
                "the paper needs units that this run has not finished",
                where=str(path),
                facts={"missing": ", ".join(missing)},
                fix=f"mechstudy run {path / 'study.yaml'} --out {path}",
            )
        return cls(path, content, artifacts, behaviours)

    def unit(self, phase: str, key: str | None = None) -> UnitFiles:
        """The files of a unit."""
        name = phase if key is None else f"{phase}[{key}]"
        return UnitFiles(name, self.artifacts[name].path)

    def of_phase(self, phase: str) -> Iterator[Artifact]:
        """The artifacts of a phase."""
        return (artifact for artifact in self.artifacts.values() if artifact.phase == phase)

    def spec(self, phase: str) -> Mapping[str, Any]:
        """What the first unit of a phase was asked to compute, every default included."""
        spec: Mapping[str, Any] = next(self.of_phase(phase)).manifest["spec"]
        return spec

    def verdict(self, behaviour: str) -> dict[str, Any]:
        """The record of a behaviour's verdict."""
        return self.unit("verdict", behaviour).json("verdict.json")
