"""How units run: device, threads, batches, parallelism. Never part of an artifact's id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mechstudy.core.config import Config
from mechstudy.machine.cgroup import allowed_cores


class RuntimeOptions(Config):
    """The options that a study's ``compute`` section and every run share.

    ``world_size`` is how many processes share the work of one unit (capture, training, attribution); ``auto`` is one,
    and inside a Slurm job one for every GPU that the job may use. ``max_parallel`` is how many units run side by side.
    ``stage`` copies a store's rows to the node's own disk while they are trained on: ``auto`` (to ``$SLURM_TMPDIR`` or
    ``$TMPDIR``, where the run lies on a network file system), ``off``, or a folder, in which ``$NAMES`` are replaced.
    ``verify_reads`` compares what training reads with the store's checksums. ``checkpointing`` recomputes blocks in
    attribution's backward pass instead of keeping their tensors (``auto``: where they would take over half of the free
    memory). ``tf32`` lets captures and baselines on CUDA use TF32, ``compile`` compiles the model's layers for corpus
    captures (``on``: on CUDA; ``force``: anywhere). ``stripe`` spreads a large store's files over a Lustre file
    system's servers: ``auto``, ``off``, or a number of them (docs/how-to/performance.md). ``monitor`` records what each
    unit uses (CPU, memory, disk, GPU) beside its artifact, every ``monitor_seconds`` (docs/how-to/monitoring.md);
    ``expected_usage`` replaces a phase's expected range of utilisation, in per cent.
    """

    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    max_parallel: int = Field(1, ge=1)
    world_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    batch_tokens: int = Field(4096, ge=1)
    stage: str = Field("auto", min_length=1)
    verify_reads: bool = False
    checkpointing: Literal["auto", "on", "off"] = "auto"
    tf32: bool = False
    compile: Literal["off", "on", "force"] = "off"
    stripe: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = "auto"
    monitor: bool = True
    monitor_seconds: float = Field(1.0, gt=0)
    expected_usage: Mapping[str, tuple[float, float]] = {}


class RunOptions(RuntimeOptions):
    """The options of one run.

    ``base`` is the study file's folder, where relative paths start; ``quota`` bounds the bytes of all artifacts.
    ``model_revision`` is the commit of a hub's model whose source names a branch or none.
    ``trace_folder`` receives torch profiler traces, ``snapshot_folder`` memory snapshots. ``resume`` gives units a
    checkpoint to start from; ``by_unit`` holds options of units that run differently from the rest.
    """

    quota: int | None = None
    seed: int = 0
    base: Path = Path()
    model_revision: str | None = None
    trace_folder: Path | None = None
    snapshot_folder: Path | None = None
    resume: Mapping[str, Path] = {}
    by_unit: Mapping[str, Mapping[str, Any]] = {}

    def replace(self, **changes: Any) -> RunOptions:
        """A copy with some fields changed."""
        return self.model_copy(update=changes)

    def of(self, unit: str) -> RunOptions:
        """The options of one unit."""
        return self.replace(**self.by_unit[unit]) if unit in self.by_unit else self

    def as_json(self) -> dict[str, Any]:
        """Plain JSON without ``resume`` and ``by_unit``, which belong to one process and its units."""
        return self.model_dump(mode="json", exclude={"resume", "by_unit"})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunOptions:
        """Options from `as_json`; fields of another version are ignored."""
        return cls(**{name: value for name, value in values.items() if name in cls.model_fields})

    @property
    def total_threads(self) -> int:
        """Threads for all units together: as set, else every core this process may use."""
        return allowed_cores() if self.threads is None else self.threads

    @property
    def unit_threads(self) -> int:
        """Threads for one unit."""
        return max(1, self.total_threads // self.max_parallel)
