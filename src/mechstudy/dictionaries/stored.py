"""A dictionary as plain data: what it is, and its tensors. File formats read and write this."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechstudy.core.errors import MechstudyError

AnyPath = str | os.PathLike[str]
DictionaryKind = Literal["sae", "transcoder", "skip_transcoder"]
StoredActivation = Literal["topk", "jumprelu"]


@dataclass(frozen=True)
class DictionaryMeta:
    """What a dictionary is. `metadata` is free-form JSON; `max_input_norm` and `max_output_norm` mark sinks.

    `k` is exact for topk; for jumprelu it is the average the threshold was calibrated to, or None if unknown.
    """

    kind: DictionaryKind
    activation: StoredActivation
    d_in: int
    d_out: int
    d_sae: int
    k: int | None
    site_in: str
    site_out: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def n_sites(self) -> int:
        """Sites side by side in a row: 1, except for a crosscoder."""
        n_sites = self.metadata.get("n_sites")
        return 1 if n_sites is None else int(n_sites)

    def norm_limit(self, name: Literal["max_input_norm", "max_output_norm"]) -> float:
        """L2 norm above which a row is a sink; infinity if none is recorded."""
        limit = self.metadata.get(name)
        return math.inf if limit is None else float(limit)


@runtime_checkable
class DictionaryLike(Protocol):
    """Anything with a dictionary's config and tensors: a `Dictionary` or a `StoredDictionary`."""

    @property
    def cfg(self) -> DictionaryMeta:
        """See `Dictionary`."""

    @property
    def W_enc(self) -> Tensor:
        """See `Dictionary`."""

    @property
    def b_enc(self) -> Tensor:
        """See `Dictionary`."""

    @property
    def W_dec(self) -> Tensor:
        """See `Dictionary`."""

    @property
    def b_dec(self) -> Tensor:
        """See `Dictionary`."""

    @property
    def W_skip(self) -> Tensor | None:
        """See `Dictionary`."""

    @property
    def threshold(self) -> Tensor | None:
        """See `Dictionary`."""


@dataclass(frozen=True)
class FileTensor:
    """A matrix that is a file's tensor as it stands there, or its transpose."""

    path: Path
    name: str
    transposed: bool = False

    def tensor(self) -> Tensor:
        """The matrix, mapped from the file: values are read as they are used, and forgotten with the tensor.

        Raises:
            MechstudyError: the file is gone or damaged.
        """
        try:
            with safe_open(self.path, "pt") as file:
                tensor: Tensor = file.get_tensor(self.name)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise MechstudyError(
                "the weights can no longer be read", where=str(self.path),
                facts={"reason": str(error)[:200], "tensor": self.name}, fix="the file as it was when it was opened",
            ) from error  # fmt: skip
        return tensor.T if self.transposed else tensor


def shown_activation(cfg: DictionaryMeta, threshold: Tensor | None) -> str:
    """The activation as it is shown: a JumpReLU whose thresholds are all zero is a ReLU."""
    plain = cfg.activation == "jumprelu" and threshold is not None and not bool(threshold.any())
    return "relu" if plain else cfg.activation


@dataclass(frozen=True)
class StoredDictionary:
    """Config and tensors of a dictionary, with the shapes of `expected_shapes`.

    ``files`` says which of W_enc and W_dec can be read again from a file without the rest.

    Raises:
        MechstudyError: a tensor is missing, superfluous or misshapen, or k is impossible.
    """

    cfg: DictionaryMeta
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    W_skip: Tensor | None = None
    threshold: Tensor | None = None
    files: Mapping[str, FileTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tensors(self.cfg, all_tensors(self))

    @property
    def in_file(self) -> bool:
        """Whether both matrices can stay in their file, none of them computed from it."""
        return {"W_enc", "W_dec"} <= set(self.files)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor there is, by name."""
        return {name: tensor for name, tensor in all_tensors(self).items() if tensor is not None}


def all_tensors(dictionary: DictionaryLike) -> dict[str, Tensor | None]:
    """Every tensor of a dictionary by name, in a fixed order; None for one that its kind does not have."""
    return {
        "W_enc": dictionary.W_enc,
        "b_enc": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
        "W_skip": dictionary.W_skip,
        "threshold": dictionary.threshold,
    }


def expected_shapes(cfg: DictionaryMeta) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a dictionary like `cfg`."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (cfg.d_in, cfg.d_sae),
        "b_enc": (cfg.d_sae,),
        "W_dec": (cfg.d_sae, cfg.d_out),
        "b_dec": (cfg.d_out,),
    }
    if cfg.kind == "skip_transcoder":
        shapes["W_skip"] = (cfg.d_out, cfg.d_in)
    if cfg.activation == "jumprelu":
        shapes["threshold"] = (cfg.d_sae,)
    return shapes


def check_tensors(cfg: DictionaryMeta, tensors: Mapping[str, Tensor | None]) -> None:
    """Refuse tensors that do not fit the config.

    Raises:
        MechstudyError: a tensor is missing, superfluous or misshapen, or k is impossible.
    """
    shapes = expected_shapes(cfg)
    for name, tensor in tensors.items():
        if (tensor is None) != (name not in shapes):
            verb = "needs" if name in shapes else "has no"
            raise MechstudyError(f"a {cfg.kind} with {cfg.activation} {verb} {name}")
        if tensor is not None and tuple(tensor.shape) != shapes[name]:
            raise MechstudyError(
                f"{name} has the wrong shape",
                facts={"found": str(list(tensor.shape)), "expected": str(list(shapes[name]))},
            )
    if cfg.activation == "topk" and not (cfg.k and 1 <= cfg.k <= cfg.d_sae):
        raise MechstudyError(f"k = {cfg.k} active features out of d_sae = {cfg.d_sae} is impossible")
