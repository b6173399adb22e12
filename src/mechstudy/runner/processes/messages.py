"""Messages between a unit's leading process and the others: tasks, and how they ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.job import Job
from mechstudy.study.units import unit_as_json, unit_from_json


@dataclass(frozen=True)
class Task:
    """One process' share of a unit: ``rank`` of ``size``.

    ``group`` is the meeting place of processes that exchange tensors.
    """

    job: Job
    rank: int
    size: int
    threads: int
    broadcast: Mapping[str, Any]
    group: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for processes on other machines."""
        job = self.job
        return {
            "unit": unit_as_json(job.unit),
            "id": job.id,
            "inputs": {name: list(key) for name, key in job.inputs.items()},
            "run": str(job.run.resolve()),
            "store": str(job.store.resolve()),
            "options": job.options.as_json(),
            "log": job.log,
            "rank": self.rank,
            "size": self.size,
            "threads": self.threads,
            "broadcast": dict(self.broadcast),
            "group": self.group,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Task:
        """The task that `as_json` made."""
        job = Job(
            unit_from_json(values["unit"]),
            values["id"],
            {name: (phase, unit, id) for name, (phase, unit, id) in values["inputs"].items()},
            Path(values["run"]),
            Path(values["store"]),
            RunOptions.from_json(values["options"]),
            log=values["log"],
        )
        return cls(job, values["rank"], values["size"], values["threads"], values["broadcast"], values["group"])


@dataclass(frozen=True)
class Ended:
    """How a share ended. ``error`` holds the four parts of a user's error, ``crash`` one line of any other."""

    rank: int
    state: Literal["done", "stopped", "failed", "killed"]
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    error: Mapping[str, Any] | None = None
    crash: str | None = None
    out_of_memory: bool = False
    trace: str = field(default="", repr=False)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)
