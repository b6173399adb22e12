"""Hardware profiles: a machine's rates, memory and prices, from a data file or measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mechstudy.core.config import Config, load_config
from mechstudy.core.errors import MechstudyError, nearest

if TYPE_CHECKING:
    from mechstudy.study.study import ComputeConfig

PROFILES = Path(__file__).parent / "profiles"
HERE = "this machine"
_GAIN = 1.2  # as models.precision: bfloat16 must be faster by this factor
_UNKNOWN_SHARE = 0.4


class Share(Config):
    """The share of a peak that whole units reach, and the source of the number."""

    share: float = Field(gt=0, le=2)
    source: str = "assumed"


class Hardware(Config):
    """One accelerator with its node, or one CPU.

    ``flops`` is the peak per precision, in FLOP/s; ``measured`` replaces it by rates at some widths of products.
    ``auto`` is the dtype that `models.precision` chose on this machine, if known. ``shares`` are of ``flops`` (forward,
    train, attribute) or of ``memory_bandwidth`` (stream, sparse). ``reserved_bytes`` is the memory of an idle process.
    Units are bytes, bytes/s and seconds.
    """

    name: str
    device: Literal["cpu", "cuda"]
    memory_bytes: int = Field(gt=0)
    reserved_bytes: int = Field(0, ge=0)
    flops: Mapping[str, float]
    measured: Mapping[str, Mapping[str, float]] = {}
    memory_bandwidth: float = Field(gt=0)
    shares: Mapping[str, Share] = {}
    half_width: float = Field(0.0, ge=0)
    call_seconds: float = Field(0.0, ge=0)
    disk_read: float = Field(1e9, gt=0)
    disk_write: float = Field(5e8, gt=0)
    startup_seconds: float = Field(5.0, ge=0)
    unit_seconds: float = Field(0.1, ge=0)
    page_seconds: float = Field(0.5, ge=0)
    su_per_gpu_hour: float = Field(1.0, ge=0)
    price_per_su: float | None = Field(None, ge=0)
    currency: str = ""
    source: str = "profile"
    auto: Literal["float32", "bfloat16"] | None = None

    @property
    def is_here(self) -> bool:
        """Whether the profile describes this machine."""
        return self.source != "profile"

    def rate(self, kind: str, dtype: str, width: int) -> float:
        """FLOP/s of this kind of products, whose smaller side is ``width``."""
        peak = self._peak(dtype, width)
        if self.half_width and width:
            peak *= width / (width + self.half_width)
        return peak * self.share(kind)

    def share(self, kind: str) -> float:
        """The share of the peak that work of this kind reaches."""
        share = self.shares.get(kind)
        return _UNKNOWN_SHARE if share is None else share.share

    def resolved(self, dtype: str, width: int = 0) -> str:
        """``auto`` as float32 or bfloat16, whichever is faster; any other dtype unchanged."""
        if dtype != "auto":
            return dtype
        if self.auto is not None:
            return self.auto
        faster = self._peak("bfloat16", width) > _GAIN * self._peak("float32", width)
        return "bfloat16" if faster else "float32"

    def _peak(self, dtype: str, width: int) -> float:
        rates = {int(w): rate for w, rate in self.measured.get(dtype, {}).items()}
        if rates:
            return _interpolated(rates, width or max(rates))
        return self.flops.get(dtype, self.flops["float32"])


def load_hardware(name: str) -> Hardware:
    """A bundled profile by name (``a100-80gb``), or a YAML file by path.

    Raises:
        MechstudyError: there is neither, or the file is invalid (with the line).
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return load_config(path, Hardware)
    bundled = {file.stem: file for file in sorted(PROFILES.glob("*.yaml"))}
    if name.lower() in bundled:
        return load_config(bundled[name.lower()], Hardware)
    raise MechstudyError(
        f"there is no hardware profile {name!r}",
        where="--hardware",
        facts={"profiles": ", ".join(bundled), "also": f"{HERE!r}, or a YAML file like them"},
        fix=_suggestion(name, bundled) or f"copy one of {PROFILES} and change it",
    )


def _suggestion(name: str, bundled: Collection[str]) -> str | None:
    """The profiles that begin with the name, else the nearest one."""
    matches = [profile for profile in bundled if name and profile.startswith(name.lower())]
    guesses = matches or [guess for guess in [nearest(name, bundled)] if guess]
    return f"did you mean {' or '.join(map(repr, guesses))}?" if guesses else None


def asked_hardware(compute: ComputeConfig, name: str | None = None) -> Hardware | None:
    """The hardware of ``name``, else the study's, with the study's own prices; None stands for this machine."""
    chosen = name or compute.hardware
    if chosen is None or chosen == HERE:
        return None
    prices = {"su_per_gpu_hour": compute.su_per_gpu_hour, "price_per_su": compute.price_per_su}
    return load_hardware(chosen).model_copy(update={key: value for key, value in prices.items() if value is not None})


def profile_of_gpu(described: str) -> Hardware | None:
    """The profile of a GPU as nvidia-smi describes it (name, memory in MiB); None for an unknown one."""
    text = described.upper()
    if "H100" in text or "H200" in text:
        return load_hardware("h100")
    if "A100" in text:
        return load_hardware("a100-80gb" if "80GB" in text or "819" in text or "812" in text else "a100-40gb")
    return None


def _interpolated(rates: Mapping[int, float], width: int) -> float:
    """The rate at a width, linear in its logarithm between measured widths, constant beyond them."""
    width = min(max(width, min(rates)), max(rates))
    if width in rates:
        return rates[width]
    above, below = min(w for w in rates if w > width), max(w for w in rates if w < width)
    part = math.log(width / below) / math.log(above / below)
    return rates[below] + part * (rates[above] - rates[below])
