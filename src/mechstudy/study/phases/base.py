"""The base class of phases: spec, inputs, units of a study, running, and retention of the output."""

from __future__ import annotations

import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from mechstudy.core.config import Config
from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.artifacts import Artifact
from mechstudy.study.unit import Retention, Unit

if TYPE_CHECKING:
    from mechstudy.study.study import Study
    from mechstudy.study.units import StudyPlan

S = TypeVar("S", bound=Config)
I = TypeVar("I")  # noqa: E741  # the inputs


class Spec(Config):
    """A phase's spec."""

    @classmethod
    def of(cls, unit: Unit) -> Self:
        """The spec of a unit of the phase."""
        assert isinstance(unit.spec, cls), f"{unit.name} has another spec"
        return unit.spec


class Output:
    """A finished artifact, with the reading methods of its phase."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    @property
    def id(self) -> str:
        """The artifact's id."""
        return self.artifact.id

    @property
    def path(self) -> Path:
        """The artifact's folder."""
        return self.artifact.path

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec, as the manifest holds it."""
        spec: Mapping[str, Any] = self.artifact.manifest["spec"]
        return spec

    def read_json(self, name: str) -> Any:
        """The content of one of its JSON files."""
        return self.artifact.read_json(name)


@dataclass(frozen=True)
class Flag:
    """A command-line option of a phase: its value becomes overrides of the study.

    ``overrides(study, value)`` returns ``key=value`` lines; without it, `Command.select` reads the value. Integers are
    at least 1.
    """

    name: str
    kind: type
    help: str
    metavar: str | None = None
    overrides: Callable[[Study, Any], Sequence[str]] | None = None


def count(name: str, help: str, field: str) -> Flag:
    """A flag for an integer field of the study."""
    return Flag(name, int, help, metavar="N", overrides=lambda _, n: [f"{field}={n}"])


@dataclass(frozen=True)
class Command:
    """The command of a phase: an example, and ``flags`` beside those of every command.

    Its line of help is in `registry.COMMANDS`.
    ``by_layer`` adds ``--layers``, ``shared`` ``--world-size``, ``resumes_from`` ``--resume-from``.
    ``select(unit, values)`` chooses the units that run.
    """

    name: str
    example: str
    flags: tuple[Flag, ...] = ()
    by_layer: bool = False
    shared: bool = False
    resumes_from: bool = False
    select: Callable[[Unit, Mapping[str, Any]], bool] = lambda _unit, _values: True


class Phase(ABC, Generic[S, I]):
    """A phase of a study. One file holds all of it; `registry` has a line for it.

    Attributes:
        kind: its name in the registry, in ``storage.retain`` and in calibrations.
        name: its name in artifacts, folders and ids; several kinds may share it.
        version: bumped when the same spec would write different bytes.
        spec: type of the spec; ``inputs`` a dataclass of `Output` types by role.
        retention: how long the files that match ``payload`` are kept by default.
        resumes: an interrupted unit continues from its saved progress.
        optional_inputs: a unit runs on whichever of its inputs exist.
        reads_payload: its units need the payload of their inputs, not only the files that are always kept.
        title: the heading of its numbers in the report; ``report_field`` the field of `report.ReportData` it fills.
        per: the subject of each of its units.
        uses_device: its units compute on the run's device; others run anywhere.
        concludes: its unit ends a run: made again after failures, and linked from the run's folder.
        usage: the expected use of the GPU, and the field that sets its batches.
        command: its command on the command line, if it has one.
        calibrated_as: the kind whose pilots calibrate it, if not its own.
        pilots: the number of times that `validate` runs each of its pilot units.
        warms_up: the first unit of a process takes longer.
    """

    kind: str
    name: str
    version: int
    spec: type[S]
    inputs: type[I]
    retention: Retention = "keep"
    payload: tuple[str, ...] = ()
    resumes: bool = False
    optional_inputs: bool = False
    reads_payload: bool = True
    uses_device: bool = True
    concludes: bool = False
    title: str
    report_field: str | None = None
    per: Literal["study", "behaviour", "layer"] = "study"
    usage: PhaseProfile = PhaseProfile()
    command: Command | None = None
    calibrated_as: str | None = None
    pilots: int = 1
    warms_up: bool = False

    @property
    def reference(self) -> str:
        """The argument of `registry.phase` that returns it."""
        return self.kind

    @abstractmethod
    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        """The phase's units of a study, after those of the phases before it."""

    @abstractmethod
    def run(self, spec: S, inputs: I, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes the artifact of one unit."""

    def share(self, spec: S, inputs: I, out: ArtifactWriter, runtime: Runtime) -> None:
        """Does one process' part of the work, where several processes share a unit (`shares`)."""
        raise NotImplementedError(f"{self.kind} is run by one process")

    def shares(self, unit: Unit) -> bool:
        """Whether several processes can share the unit."""
        return type(self).share is not Phase.share

    def gate(self, output: Artifact) -> str | None:
        """Why the artifact stops the units that name it as a gate; None where it does not."""
        return None

    def writes(self, spec: Mapping[str, Any]) -> bool:
        """Whether an artifact of this name and spec is of this kind."""
        return True

    def changed(self, spec: S, base: Path) -> str | None:
        """The user's file that no longer matches the spec; None where all match."""
        return None

    def earlier_spec(self, spec: S, made: Artifact, base: Path) -> S | None:
        """The spec of a unit's artifact that an earlier version made and that still stands for the same files.

        Such a unit keeps that spec, and so its id. None where the artifact is not of these files.
        """
        return None

    def obstacle(self, spec: S, base: Path) -> str | None:
        """Why the user's files do not allow an artifact of this spec to be made again; None where they do."""
        return None

    def collect(self, unit: Unit, artifacts: Mapping[str, Artifact]) -> I:
        """The typed inputs of a unit, from artifacts by unit name, without absent optional ones."""
        roles = _roles(self.inputs)
        values: dict[str, Any] = {role: {} if many else None for role, (_, many) in roles.items()}
        for item in unit.inputs:
            if (artifact := artifacts.get(item.unit)) is not None:
                output, many = roles[item.role]
                if many:
                    values[item.role][item.key] = output(artifact)
                else:
                    values[item.role] = output(artifact)
        return self.inputs(**values)


def made_by(units: Iterable[Unit], phase: type[Phase[Any, Any]], **about: Any) -> list[Unit]:
    """The units of a phase, in order, with these attributes (``behaviour=``, ``layer=``, ``wave=``)."""
    return [
        unit
        for unit in units
        if type(unit.phase) is phase and all(getattr(unit, name) == value for name, value in about.items())
    ]


def _roles(inputs: type[Any]) -> dict[str, tuple[type[Output], bool]]:
    """The output type of each role, and whether it holds several, from the annotations of an inputs dataclass."""
    roles: dict[str, tuple[type[Output], bool]] = {}
    for role, hint in typing.get_type_hints(inputs).items():
        if typing.get_origin(hint) is types.UnionType:
            hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
        many = typing.get_origin(hint) is not None
        roles[role] = (typing.get_args(hint)[1] if many else hint, many)
    return roles
