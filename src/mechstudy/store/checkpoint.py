"""Checkpoints: single safetensors files, written atomically, that refuse to load when a byte is wrong."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

_SCHEMA = "mechstudy-checkpoint-1"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON state so that a killed process leaves the old checkpoint or the new one.

    Tensors are stored contiguous, those that share memory separately. ``state`` is read back as JSON
    (tuples as lists, keys as strings; NaN and infinities survive).

    Raises:
        MechstudyError: the disk is full.
        TypeError: ``state`` has a value without a JSON form.
    """
    from safetensors.torch import save_file

    contiguous: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        address = stored.untyped_storage().data_ptr()
        if address in storages:
            stored = stored.clone()
        storages.add(address)
        contiguous[name] = stored
    state_text = json.dumps(dict(state))
    metadata = {
        "schema": _SCHEMA,
        "state": state_text,
        "state_crc32": str(zlib.crc32(state_text.encode())),
        "crc32": json.dumps({name: _crc32(name, tensor) for name, tensor in contiguous.items()}),
    }
    with atomic_path(Path(path)) as temporary:
        save_file(contiguous, temporary, metadata=metadata)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors (on the CPU) and the state, or None where there is no checkpoint.

    Raises:
        MechstudyError: the file is truncated, corrupt, or not one of these checkpoints.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            # Cloned: a tensor must not stay mapped to a file that is replaced and deleted while it lives.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if metadata.get("schema") != _SCHEMA:
        raise _damaged(path, f"not a checkpoint of this version ({_SCHEMA})")
    try:
        state_text = metadata["state"]
        state_crc32 = int(metadata["state_crc32"])
        sums: dict[str, int] = json.loads(metadata["crc32"])
    except (KeyError, ValueError) as error:
        raise _damaged(path, f"its header is incomplete: {error}") from error
    if zlib.crc32(state_text.encode()) != state_crc32:
        raise _damaged(path, "the state does not match its checksum")
    if set(sums) != set(tensors):
        raise _damaged(path, "it does not hold the tensors that were saved")
    for name, tensor in tensors.items():
        if _crc32(name, tensor) != sums[name]:
            raise _damaged(path, f"tensor {name} does not match its checksum")
    return tensors, json.loads(state_text)


def _crc32(name: str, tensor: Tensor) -> int:
    import torch

    start = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, start)


def _damaged(path: Path, reason: str) -> MechstudyError:
    return MechstudyError(
        "the checkpoint is damaged",
        where=str(path),
        facts={"cause": reason},
        fix="delete the file: the unit then starts from its beginning",
    )
