"""How units run: device, threads, batches, parallelism. Never part of an artifact's id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mechstudy.core.config import Config
from mechstudy.machine.cgroup import allowed_cores


class RuntimeOptions(Config):
    """The options that a study's ``compute`` section and every run share (docs/how-to/performance.md)."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of all units together; without it every core that the process may use."""
    max_parallel: int = Field(1, ge=1)
    """Units that run side by side."""
    world_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes that share the work of one unit; auto: one, and in a Slurm job one for every GPU of the job."""
    batch_tokens: int = Field(4096, ge=1)
    """Tokens of a forward pass, at most."""
    stage: str = Field("auto", min_length=1)
    """Copy rows to the node's own disk while they are trained on: auto (from a network file system to $SLURM_TMPDIR or
    $TMPDIR), off, or a folder."""
    verify_reads: bool = False
    """Compare what training reads with the store's checksums."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute blocks in attribution's backward pass in place of keeping their tensors; auto: where these would take
    over half of the free memory."""
    tf32: bool = False
    """Captures and baselines on CUDA may use TF32."""
    compile: Literal["off", "on", "force"] = "off"
    """Compile the model's layers for corpus captures: on CUDA (on) or anywhere (force)."""
    stripe: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = "auto"
    """Servers of a Lustre file system over which a large store's files are spread."""
    monitor: bool = True
    """Record each unit's use of CPU, memory, disk and GPU."""
    monitor_seconds: float = Field(1.0, gt=0)
    """Seconds between two samples of use."""
    expected_usage: Mapping[str, tuple[float, float]] = {}
    """Expected utilisation of phases, in per cent: `{train: [40, 60]}`."""


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
