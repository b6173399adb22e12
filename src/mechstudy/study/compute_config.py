"""`compute` and `storage` of a study: how it runs and what is kept, never what is computed. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mechstudy.activations.quota import parse_size
from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError
from mechstudy.study.retention import Retention, check_kinds
from mechstudy.study.slurm_config import PHASES, SlurmConfig


class ComputeConfig(Config):
    """How it runs, never what: not part of any artifact's id.

    ``world_size`` is how many processes share the work of one unit (capture, training, attribution); ``auto`` is one,
    and inside a Slurm job one for every GPU that the job may use. ``max_parallel`` is how many units run side by side.
    ``stage`` copies a store's rows to the node's own disk for as long as they are trained on: ``auto`` (to
    ``$SLURM_TMPDIR`` or ``$TMPDIR``, where the run lies on a network file system), ``off``, or a folder, in which
    ``$NAMES`` are replaced. ``verify_reads`` compares what training reads with the store's checksums.
    ``checkpointing`` computes blocks again in attribution's backward pass rather than keep their tensors (``auto``:
    where they would take over half of the memory left). ``tf32`` lets captures and baselines on CUDA use TF32,
    ``compile`` compiles the model's layers for corpus captures (``on``: on CUDA; ``force``: anywhere). ``stripe``
    spreads a large store's files over a Lustre file system's servers: ``auto``, ``off``, or over so many
    (docs/performance.md).
    ``monitor`` writes what each unit uses (CPU, memory, disk, GPU) beside its artifact, every ``monitor_seconds``
    (docs/monitoring.md); ``expected_usage`` is how busy a phase is to be, in per cent, where that is not as usual.
    ``slurm`` is what `submit` asks of a cluster, ``profile`` a file of such values in the user's
    config folder (docs/slurm.md).
    ``hardware`` is what `plan` and `cost` count with: a profile (docs/budget.md), by default this machine. A site's
    own ``su_per_gpu_hour`` and ``price_per_su`` go before the profile's.
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
    slurm: SlurmConfig = SlurmConfig()
    profile: str | None = Field(None, pattern=r"^[A-Za-z0-9_.\-]+$")
    hardware: str | None = None
    su_per_gpu_hour: float | None = Field(None, ge=0)
    price_per_su: float | None = Field(None, ge=0)

    @field_validator("expected_usage")
    @classmethod
    def _ranges(cls, value: Mapping[str, tuple[float, float]]) -> Mapping[str, tuple[float, float]]:
        for phase, (low, high) in value.items():
            if phase not in PHASES:
                raise MechstudyError(f"there is no phase {phase!r}", fix=f"one of {', '.join(PHASES)}")
            if not 0 <= low < high <= 100:
                raise MechstudyError(f"{phase}: {low:g} to {high:g} is no range", fix=f"in per cent: {phase}: [40, 60]")
        return value


class StorageConfig(Config):
    """``retain`` says of kinds of artifacts how long they are kept, where that is not as usual (docs/storage.md).

    ``retain: {capture: keep}`` leaves captured corpus rows; by default (``discard``) they are deleted once every
    dictionary that needs them is trained, and with ``regenerate`` by `mechstudy clean`. ``activations: keep`` is an
    earlier way to write the first of these.
    ``quota`` (``50GB``, ``1.5TiB``) is the most bytes the run's artifacts may take, where the disk's own free space is
    not the limit: refused before anything is allocated. How it runs, not what: not part of any artifact's id.
    """

    retain: Mapping[str, Retention] = {}
    quota: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _earlier_way(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "activations" not in value:
            return value
        rest = {key: item for key, item in value.items() if key != "activations"}
        given = value["activations"]
        if given not in ("keep", "discard"):
            raise MechstudyError(f"activations is keep or discard, not {given!r}", fix="retain: {capture: keep}")
        retain = rest.get("retain") or {}
        if isinstance(retain, Mapping) and retain.get("capture", given) != given:
            raise MechstudyError(
                f"activations says {given}, and retain.capture {retain['capture']}", fix="leave out activations"
            )
        return {**rest, "retain": {"capture": given, **retain}} if isinstance(retain, Mapping) else rest

    @field_validator("retain")
    @classmethod
    def _known_kinds(cls, value: Mapping[str, Retention]) -> Mapping[str, Retention]:
        check_kinds(value)
        return value

    @field_validator("quota")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value

    @property
    def quota_bytes(self) -> int | None:
        return None if self.quota is None else parse_size(self.quota)
