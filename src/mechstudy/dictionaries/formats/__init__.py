"""Dictionaries on disk, by whoever wrote them. What a path holds is told by its files."""

from __future__ import annotations

from pathlib import Path

import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import circuit_tracer, dictionary_learning, saelens, sparsify

__all__ = ["read"]


def read(path: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Dictionary:
    """Read one dictionary of mechstudy, SAELens, sparsify, dictionary_learning, circuit-tracer or Gemma Scope.

    Args:
        path: a folder with ``sae_weights.safetensors``, ``sae.safetensors`` or ``ae.pt``; or one file of a
            transcoder set (``layer_3.safetensors``) or of Gemma Scope (``params.npz``).
        dtype: None keeps the file's.

    Raises:
        MechstudyError: nothing that is known is there, or it is damaged or cannot be represented. No pickle is
            executed, whatever the file says.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".safetensors":
        found = circuit_tracer.read(path)
    elif path.suffix == ".npz" or (path / circuit_tracer.GEMMA_SCOPE).exists():
        found = circuit_tracer.read_gemma_scope(path if path.is_file() else path / circuit_tracer.GEMMA_SCOPE)
    elif (path / sparsify.WEIGHTS).exists():
        found = sparsify.read(path)
    elif (path / dictionary_learning.WEIGHTS).exists():
        found = dictionary_learning.read(path)
    elif path.is_dir() or not path.exists():
        found = saelens.read(path)
    else:
        raise MechstudyError(
            "this is no dictionary", where=str(path), fix="a folder, or a .safetensors or .npz file of a set"
        )
    return found.to(device=device) if dtype is None else found.to(device=device, dtype=dtype)
