"""One unit to run, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.machine.memory import available_memory_bytes
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.artifacts import Artifact, ArtifactStore
from mechstudy.study.run_folder import RunFolder
from mechstudy.study.unit import Unit
from mechstudy.study.units import unit_as_json, unit_from_json

LOG = "log.txt"


@dataclass(frozen=True)
class Job:
    """A unit with its inputs on disk: all that a worker process needs.

    ``inputs`` maps unit names to their artifacts' keys: phase, unit name, id. ``log`` is a file of the run's folder, or
    None to log to the stream alone.
    """

    unit: Unit
    id: str
    inputs: Mapping[str, tuple[str, str, str]]
    run: Path
    options: RunOptions
    log: str | None = LOG

    @property
    def log_file(self) -> Path | None:
        """The file that messages are appended to."""
        return None if self.log is None else self.run / self.log

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for processes on other machines."""
        parts = {"unit": unit_as_json(self.unit), "run": str(self.run.resolve()), "options": self.options.as_json()}
        return {**vars(self), **parts}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Job:
        """The job that `as_json` made."""
        parts = {
            "unit": unit_from_json(values["unit"]),
            "inputs": {name: (phase, unit, id) for name, (phase, unit, id) in values["inputs"].items()},
            "run": Path(values["run"]),
            "options": RunOptions.from_json(values["options"]),
        }
        return cls(**{**values, **parts})

    @property
    def _store(self) -> ArtifactStore:
        return RunFolder(self.run).store

    def load_inputs(self) -> dict[str, Artifact]:
        """The input artifacts by unit name.

        Raises:
            MechstudyError: one of them is missing or damaged.
        """
        artifacts: dict[str, Artifact] = {}
        for source, key in self.inputs.items():
            if (artifact := self._store.find(*key)) is None:
                raise MechstudyError(
                    f"the artifact of {source} is gone or damaged",
                    where=str(self._store.folder(*key)),
                    fix="run the same command again: the unit then runs again",
                )
            artifacts[source] = artifact
        return artifacts

    def writer(self, inputs: Mapping[str, Artifact], *, helps: bool = False) -> ArtifactWriter:
        """The writer of its artifact; with ``helps`` another process publishes it."""
        phase = self.unit.phase
        key = phase.name, self.unit.name, self.id
        return self._store.writer(
            *key, version=phase.version, spec=self.unit.canonical_spec, inputs=inputs, helps=helps
        )


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its seconds, and the error with its traceback where it failed.

    ``error`` is the user's, ``crash`` one line of any other error.
    """

    name: str
    seconds: float
    peak_rss_bytes: int = 0
    error: MechstudyError | None = None
    crash: str | None = None
    trace: str = ""

    @property
    def failed(self) -> bool:
        """Whether there is no artifact."""
        return self.error is not None or self.crash is not None

    @property
    def exit_code(self) -> int:
        """0, 2 for a user error, 1 for a crash."""
        return 1 if self.crash is not None else 2 if self.failed else 0

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        return self.crash or (self.error.what if self.error is not None else "")


def killed(
    where: str, smaller: str = "set compute.max_parallel: 1 or a smaller compute.batch_tokens"
) -> MechstudyError:
    """The error of a unit whose process was killed; ``smaller`` says how it needs less memory."""
    return MechstudyError(
        "its process was killed from outside, most likely because memory ran out",
        where=where,
        facts={"available": f"{available_memory_bytes() / 2**30:.1f} GiB"},
        fix=f"{smaller}, or use a machine with more memory",
    )


def crash_line(error: BaseException) -> str:
    """An error's type and the first line of its text."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
