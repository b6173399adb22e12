"""What the readers share: tensors out of files, checked, and the algebra of other conventions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.architectures.gated import gate_as_threshold


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        MechstudyError: the file is absent, no JSON, or no object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise MechstudyError(f"no dictionary here: {path.name} is missing", where=str(path.parent)) from error
    except (OSError, ValueError) as error:
        raise MechstudyError(
            f"{path.name} cannot be read as JSON", where=str(path), facts={"reason": str(error)}
        ) from error
    if not isinstance(content, dict):
        raise MechstudyError(f"{path.name} is no JSON object", where=str(path))
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file.

    Raises:
        MechstudyError: the file is absent, truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise MechstudyError(f"no dictionary here: {path.name} is missing", where=str(path.parent))
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise MechstudyError(
            "the weights are truncated or damaged",
            where=str(path),
            facts={"reason": str(error), "size": f"{path.stat().st_size:,} bytes"},
            fix="copy or download the file again",
        ) from error


def require(tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], where: Path) -> None:
    """Refuse missing and misshapen tensors, by name."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise MechstudyError(
                f"tensor {name} is missing",
                where=str(where),
                facts={"has": ", ".join(sorted(tensors)), "needs": ", ".join(shapes)},
            )
        if tuple(tensors[name].shape) != tuple(shape):
            raise MechstudyError(
                f"tensor {name} has the wrong shape",
                where=str(where),
                facts={"found": str(list(tensors[name].shape)), "expected": str(list(shape))},
            )


def without_centring(b_enc: Tensor, b_dec: Tensor, W_enc: Tensor) -> Tensor:
    """The bias on x that does what `b_enc` does on x - b_dec: b_enc - b_dec @ W_enc, W_enc [d_in, F]."""
    return (b_enc.double() - b_dec.double() @ W_enc.double()).to(b_enc.dtype)


def gated_as_jumprelu(W_enc: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(W_enc, b_enc, threshold) of the JumpReLU that a gated encoder is; see `architectures.gated`."""
    gain, threshold = gate_as_threshold(b_gate.double(), r_mag.double(), b_mag.double())
    return (W_enc.double() * gain).to(W_enc.dtype), b_mag, threshold.clamp_min(0.0).to(b_mag.dtype)
