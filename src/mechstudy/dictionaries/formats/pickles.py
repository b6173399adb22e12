"""Reads state dicts that torch saved, with the weights-only loader: no pickle is executed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError


def read_state_dict(path: Path, what: str) -> dict[str, Tensor]:
    """Every tensor of a file that ``torch.save`` wrote, mapped from the file where its layout allows.

    Args:
        path: the file.
        what: what the file is thought to be, for errors.

    Raises:
        MechstudyError: it is absent or damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise MechstudyError(
            f"no dictionary here: {path.name} is missing", where=str(path.parent), fix="the folder that holds it"
        )
    fix = "save its state_dict() again with torch.save"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the unpickler raises whatever a damaged or hostile file provokes
        raise MechstudyError(
            f"{path.name} is damaged, or holds more than tensors and is not trusted",
            where=str(path),
            facts={"read as": what, "reason": (str(error).splitlines() or [type(error).__name__])[0][:200]},
            fix=fix,
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise MechstudyError(f"{path.name} holds no state dict", where=str(path), facts={"read as": what}, fix=fix)
    return {str(name): tensor for name, tensor in content.items()}
