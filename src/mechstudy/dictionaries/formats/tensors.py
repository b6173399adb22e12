"""Shared by the formats: checked reading and writing of tensors, and conversions between conventions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.architectures.gated import gate_as_threshold
from mechstudy.dictionaries.formats.fields import shown
from mechstudy.models.readable import check_readable

_COPIED = 2**26  # numbers of a matrix that are copied at a time
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file.

    Raises:
        MechstudyError: the file is absent, a dangling link, a pointer of Git LFS, truncated or damaged.
    """
    if not os.path.lexists(path):
        raise MechstudyError(
            f"no dictionary here: {path.name} is missing", where=str(path.parent), fix="the folder that holds it"
        )
    check_readable(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise MechstudyError(
            "the weights are truncated or damaged",
            where=str(path),
            facts={"reason": str(error), "size": f"{path.stat().st_size:,} bytes"},
            fix="copy or download the file again",
        ) from error


def header_text(path: Path, name: str) -> str:
    """A text of a safetensors file's header; "" if it has none of that name."""
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get(name, ""))
    except (SafetensorError, OSError, ValueError):
        return ""


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write a file whole or not at all, with texts in its header. A link in its place is replaced, not followed.

    Raises:
        MechstudyError: it cannot be written.
    """
    with _whole(path) as partial:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            partial,
            dict(header or {}) or None,
        )


def write_text(text: str, path: Path) -> None:
    """Write text as `write_safetensors` writes tensors."""
    with _whole(path) as partial:
        partial.write_text(text)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise MechstudyError(
            f"{path.name} cannot be written",
            where=str(path.parent),
            facts={"reason": str(error)},
            fix="another folder, or room on the disk",
        ) from error


def require(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], where: Path, *, mapped: bool = False
) -> None:
    """Refuse missing and misshapen tensors, integers, and NaN. A threshold may be infinite: its feature is off.

    Values of matrices are not looked at if they are only ``mapped``, which would read the whole file.

    Raises:
        MechstudyError: names the tensor.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            raise MechstudyError(
                f"tensor {name} is missing",
                where=str(where),
                facts={"has": ", ".join(sorted(tensors)), "needs": ", ".join(shapes)},
                fix="copy or download the file again; is it another architecture than its config says?",
            )
        tensor = tensors[name]
        if tuple(tensor.shape) != tuple(shape):
            raise MechstudyError(
                f"tensor {name} has the wrong shape",
                where=str(where),
                facts={"found": str(list(tensor.shape)), "expected": str(list(shape))},
                fix="the config and the weights of one dictionary",
            )
        if tensor.dtype not in _DTYPES:
            raise MechstudyError(
                f"tensor {name} holds {str(tensor.dtype).removeprefix('torch.')}, not numbers of a dictionary",
                where=str(where),
                facts={"known": ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)},
                fix="save the dictionary again in one of these",
            )
        if mapped and tensor.ndim > 1:
            continue
        bad = int((tensor.isnan() if "threshold" in name else ~tensor.isfinite()).sum())
        if bad:
            raise MechstudyError(
                f"tensor {name} holds {bad:,} values that are no finite numbers",
                where=str(where),
                facts={"values": f"{tensor.numel():,}"},
                fix="an earlier checkpoint: this training has diverged",
            )


def shape_of(tensors: Mapping[str, Tensor], name: str, where: Path) -> tuple[int, int]:
    """The two sizes of a matrix, whose values are not looked at.

    Raises:
        MechstudyError: it is missing, not a matrix, or empty.
    """
    require(tensors, {name: tensors[name].shape if name in tensors else (0, 0)}, where, mapped=True)
    if tensors[name].ndim != 2 or not tensors[name].numel():
        raise MechstudyError(
            f"tensor {name} has the wrong shape: it is not a matrix",
            where=str(where),
            facts={"found": str(list(tensors[name].shape))},
            fix="copy or download the file again",
        )
    rows, columns = tensors[name].shape
    return rows, columns


def whole_tensor(tensors: Mapping[str, Tensor], name: str, where: Path) -> int:
    """The value of a tensor that holds one whole number.

    Raises:
        MechstudyError: it holds several numbers, or none that is whole.
    """
    tensor = tensors[name]
    value = float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else math.nan
    if not value.is_integer():
        raise MechstudyError(
            f"tensor {name} is not one whole number", where=str(where),
            facts={"shape": str(list(tensor.shape)), "values": shown(tensor.flatten()[:4].tolist())},
            fix="copy or download the file again",
        )  # fmt: skip
    return int(value)


def of_one_dtype(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors in W_enc's dtype: some trainings keep thresholds in another one."""
    return {name: tensor.to(tensors["W_enc"].dtype) for name, tensor in tensors.items()}


def without_centring(b_enc: Tensor, b_dec: Tensor, W_enc: Tensor) -> Tensor:
    """The bias for x that equals `b_enc` for x - b_dec: b_enc - b_dec @ W_enc, W_enc [d_in, F].

    Products are float64, some columns at a time: a second copy of a large encoder may not fit.
    """
    width = max(1, _COPIED // len(W_enc))
    shift = [b_dec.double() @ W_enc[:, i : i + width].double() for i in range(0, W_enc.shape[1], width)]
    return (b_enc.double() - torch.cat(shift)).to(b_enc.dtype)


def transposed(tensor: Tensor, *, mapped: bool = False) -> Tensor:
    """The transpose, as a matrix of its own unless it is to stay ``mapped`` from its file."""
    return tensor.T if mapped else tensor.T.contiguous()


def gated_as_jumprelu(W_enc: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(W_enc, b_enc, threshold) of the JumpReLU that equals a gated encoder; see `architectures.gated`."""
    gain, threshold = gate_as_threshold(b_gate.double(), r_mag.double(), b_mag.double())
    return (W_enc.double() * gain).to(W_enc.dtype), b_mag, threshold.clamp_min(0.0).to(b_mag.dtype)
