"""The sections `compute` and `storage` of a study: options of its runs, and retention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from mechstudy.activations.quota import parse_size
from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError
from mechstudy.machine.runtime_options import RuntimeOptions
from mechstudy.study.phases import registry
from mechstudy.study.retention import Retention
from mechstudy.study.slurm_config import SlurmConfig


class ComputeConfig(RuntimeOptions):
    """Options of a study's runs. They change no result and are not part of any artifact's id.

    Beside the options of every run: ``slurm`` holds the values of `submit`'s jobs, ``profile`` names a file of such
    values in the user's config folder (docs/how-to/slurm.md). ``hardware`` is the profile that `plan` and `cost` use
    (docs/how-to/budget.md), by default this machine; ``su_per_gpu_hour`` and ``price_per_su`` replace the profile's.
    """

    slurm: SlurmConfig = SlurmConfig()
    profile: str | None = Field(None, pattern=r"^[A-Za-z0-9_.\-]+$")
    hardware: str | None = None
    su_per_gpu_hour: float | None = Field(None, ge=0)
    price_per_su: float | None = Field(None, ge=0)

    @field_validator("expected_usage")
    @classmethod
    def _ranges(cls, value: Mapping[str, tuple[float, float]]) -> Mapping[str, tuple[float, float]]:
        for phase, (low, high) in value.items():
            registry.check_name(phase)
            if not 0 <= low < high <= 100:
                raise MechstudyError(f"{phase}: {low:g} to {high:g} is no range", fix=f"in per cent: {phase}: [40, 60]")
        return value


class StorageConfig(Config):
    """Retention and quota. They change no result and are not part of any artifact's id.

    ``retain`` maps kinds of artifacts to a retention other than the default (docs/how-to/storage.md).
    ``retain: {capture: keep}`` keeps captured corpus rows; by default (``discard``) they are deleted once every
    dictionary that needs them is trained, and with ``regenerate`` by `mechstudy clean`. ``activations: keep`` is an
    earlier spelling of the first. ``quota`` (``50GB``, ``1.5TiB``) bounds the bytes of the run's artifacts; a study
    that needs more is refused before anything is written.
    """

    retain: Mapping[str, Retention] = {}
    quota: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _earlier_spelling(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "activations" not in value:
            return value
        rest = {key: item for key, item in value.items() if key != "activations"}
        activations = value["activations"]
        if activations not in ("keep", "discard"):
            raise MechstudyError(f"activations is keep or discard, not {activations!r}", fix="retain: {capture: keep}")
        retain = rest.get("retain") or {}
        if isinstance(retain, Mapping) and retain.get("capture", activations) != activations:
            raise MechstudyError(
                f"activations says {activations}, and retain.capture {retain['capture']}", fix="leave out activations"
            )
        return {**rest, "retain": {"capture": activations, **retain}} if isinstance(retain, Mapping) else rest

    @field_validator("retain")
    @classmethod
    def _known_kinds(cls, value: Mapping[str, Retention]) -> Mapping[str, Retention]:
        registry.check_kinds(value)
        return value

    @field_validator("quota")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value

    @property
    def quota_bytes(self) -> int | None:
        """The quota in bytes."""
        return None if self.quota is None else parse_size(self.quota)
