"""Dictionaries on disk, by whoever wrote them. What a path holds is told by its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import circuit_tracer, dictionary_learning, gemma_scope, hub, saelens, sparsify
from mechstudy.dictionaries.paths import AnyPath

__all__ = ["format_of", "read"]

_READERS: dict[str, Callable[[Path], Dictionary]] = {
    "SAELens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
    "circuit-tracer": circuit_tracer.read,
    "Gemma Scope": gemma_scope.read,
}


def read(path: AnyPath, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Dictionary:
    """Read one dictionary of mechstudy, SAELens, sparsify, dictionary_learning, circuit-tracer or Gemma Scope.

    Args:
        path: a folder with ``sae_weights.safetensors``, ``sae.safetensors`` or ``ae.pt``; or one file of a
            transcoder set (``layer_3.safetensors``) or of Gemma Scope (``params.npz``, ``params.safetensors``); or
            ``hf:owner/name/folder@revision`` for one of these on the Hugging Face hub.
        dtype: None keeps the file's.

    Raises:
        MechstudyError: nothing that is known is there, or it is damaged or cannot be represented. No pickle is
            executed, whatever the file says.
    """
    local = hub.pull(str(path)) if hub.is_hub(str(path)) else Path(path)
    name, found = format_of(local)
    try:
        dictionary = _READERS[name](found)
    except MechstudyError as error:
        if error.where is not None:
            raise
        fix = error.fix or "the config and the weights of one dictionary"
        raise MechstudyError(error.what, where=str(local), facts=error.facts, fix=fix) from error
    return dictionary.to(device=device) if dtype is None else dictionary.to(device=device, dtype=dtype)


def format_of(path: AnyPath) -> tuple[str, Path]:
    """Who wrote what stands at a path, and the folder or file to read.

    Raises:
        MechstudyError: it is a file of no known kind, or a folder of several dictionaries.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix == ".npz" or path.name in gemma_scope.FILES:
            return "Gemma Scope", path
        if path.suffix == ".safetensors" and path.name not in (saelens.WEIGHTS, sparsify.WEIGHTS):
            return "circuit-tracer", path
        if path.name in (saelens.WEIGHTS, saelens.CFG, sparsify.WEIGHTS, dictionary_learning.WEIGHTS):
            return format_of(path.parent)
        raise MechstudyError(
            "this is no dictionary", where=str(path), fix="a folder, or a .safetensors or .npz file of a set"
        )
    for name in gemma_scope.FILES:
        if (path / name).exists():
            return "Gemma Scope", path / name
    if (path / sparsify.WEIGHTS).exists():
        return "sparsify", path
    if (path / dictionary_learning.WEIGHTS).exists():
        return "dictionary_learning", path
    if not (path / saelens.CFG).exists():
        _refuse_several(path)
    return "SAELens", path


def _refuse_several(path: Path) -> None:
    if (path / "W_enc_0.safetensors").exists():
        raise MechstudyError(
            "this is a cross-layer transcoder", where=str(path), fix="CrossLayerTranscoder.load, which reads all layers"
        )
    if found := sorted(path.glob("layer_*.safetensors")):
        raise MechstudyError(
            f"this is a set of {len(found)} transcoders", where=str(path), fix=f"one of them: {path / found[0].name}"
        )
