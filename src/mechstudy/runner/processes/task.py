"""One rank's share of a unit: what its process is told, how it does it, and what it says when it is done."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mechstudy.core.errors import MechstudyError
from mechstudy.core.signals import Stopped
from mechstudy.machine.memory import peak_rss_bytes, reset_peak_rss
from mechstudy.machine.numerics import exact_products
from mechstudy.machine.process_group import Helping
from mechstudy.machine.runtime import is_out_of_memory
from mechstudy.runner.processes.progress import HelperProgress
from mechstudy.runner.run_unit import Job, Options, device_of, function_named, inputs_of, runtime_of, set_threads
from mechstudy.store.artifacts import ArtifactStore

# What can be shared: a unit's entry, and the function that does one process' share of it.
SHARES = {
    "mechstudy.study.phases.capture:run_prompts": "mechstudy.study.phases.capture:share_prompts",
    "mechstudy.study.phases.capture:run_corpus": "mechstudy.study.phases.capture:share_corpus",
    "mechstudy.study.phases.train:run": "mechstudy.study.phases.train:share",
    "mechstudy.study.phases.variant:run": "mechstudy.study.phases.train:share",
    "mechstudy.study.phases.attribute:run": "mechstudy.study.phases.attribute:share",
}
FOLDER = "ranks"  # in the scratch folder: progress of every helping rank


@dataclass(frozen=True)
class Task:
    """A rank's share of a unit, as JSON can carry it. ``group`` is where ranks that talk to one another meet."""

    share: str
    unit: str
    phase: str
    id: str
    version: int
    spec: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, str, str]]
    store: str
    log: str | None
    options: Mapping[str, Any]
    rank: int
    size: int
    threads: int
    told: Mapping[str, Any]
    group: str | None = None

    @classmethod
    def of(cls, job: Job, rank: int, size: int, threads: int, told: Mapping[str, Any], group: str | None) -> Task:
        unit = job.unit
        log = None if job.log is None else str((job.run / job.log).resolve())
        return cls(
            SHARES[unit.entry], unit.name, unit.phase, job.id, unit.version, unit.spec, job.inputs,
            str(job.store.resolve()), log, job.options.as_json(), rank, size, threads, dict(told), group,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Task:
        inputs = {label: (phase, unit, id) for label, (phase, unit, id) in found["inputs"].items()}
        return cls(**{**found, "inputs": inputs})


@dataclass(frozen=True)
class Ended:
    """How a share ended. ``error`` is a user's mistake (its four parts), ``crash`` anything else, in a line."""

    rank: int
    state: Literal["done", "stopped", "failed", "killed"]
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    error: Mapping[str, Any] | None = None
    crash: str | None = None
    out_of_memory: bool = False
    trace: str = field(default="", repr=False)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def do_share(task: Task, cache: dict[Any, Any], local_rank: int) -> Ended:
    """Does a rank's share in this process. Every error but an interruption comes back in what is returned."""
    began = time.monotonic()
    reset_peak_rss()
    try:
        _share(task, cache, local_rank)
    except Stopped:
        return Ended(task.rank, "stopped", time.monotonic() - began)
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        mistake = isinstance(error, MechstudyError)
        return Ended(
            task.rank,
            "failed",
            time.monotonic() - began,
            error={"what": error.what, "where": error.where, "facts": error.facts, "fix": error.fix}
            if isinstance(error, MechstudyError)
            else None,
            crash=None if mistake else f"{type(error).__name__}: {line}" if line else type(error).__name__,
            out_of_memory=is_out_of_memory(error),
            trace=traceback.format_exc(),
        )
    return Ended(task.rank, "done", time.monotonic() - began, peak_rss_bytes())


def _share(task: Task, cache: dict[Any, Any], local_rank: int) -> None:
    options, store = Options.from_json(task.options), ArtifactStore(Path(task.store))
    inputs = inputs_of(store, task.inputs)
    writer = store.writer(
        task.phase, task.unit, task.id, version=task.version, spec=task.spec, inputs=inputs, helps=True
    )  # fmt: skip
    progress = HelperProgress(
        writer.scratch / FOLDER / str(task.rank),
        phase=task.phase,
        unit=f"{task.unit} (rank {task.rank})",
        log_file=None if task.log is None else Path(task.log),
    )
    set_threads(task.threads)
    exact_products()
    device = device_of(options.device, local_rank)
    runtime = runtime_of(options, device, task.threads, progress, cache)
    runtime.ranks = Helping(task.rank, task.size, task.told)
    with ExitStack() as stack:
        if task.group is not None:
            from mechstudy.runner.processes.meeting import joined

            stack.enter_context(joined(task.group, task.rank, task.size, device))
        function_named(task.share)(task.spec, inputs, writer, runtime)
