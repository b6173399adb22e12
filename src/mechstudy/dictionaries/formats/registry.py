"""Recognises the format of a stored dictionary by its files, and reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats import circuit_tracer, dictionary_learning, gemma_scope, hub, saelens, sparsify
from mechstudy.dictionaries.stored import AnyPath, StoredDictionary

WEIGHTS = (saelens.WEIGHTS, sparsify.WEIGHTS, dictionary_learning.WEIGHTS, *gemma_scope.FILES)
_READERS: dict[str, Callable[[Path], StoredDictionary]] = {
    "SAELens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
    "circuit-tracer": circuit_tracer.read,
    "Gemma Scope": gemma_scope.read,
}


def read(path: AnyPath) -> StoredDictionary:
    """Read one dictionary of mechstudy, SAELens, sparsify, dictionary_learning, circuit-tracer or Gemma Scope.

    Args:
        path: a folder with ``sae_weights.safetensors``, ``sae.safetensors`` or ``ae.pt``; or one file of a
            transcoder set (``layer_3.safetensors``) or of Gemma Scope (``params.npz``, ``params.safetensors``); or
            ``hf:owner/name/folder@revision`` for one of these on the Hugging Face hub.

    Raises:
        MechstudyError: no dictionary of a known format is there, or it is damaged or cannot be represented. No pickle
            is executed, whatever the file says.
    """
    local = local_path(path)
    name, source = format_of(local)
    try:
        return _READERS[name](source)
    except MechstudyError as error:
        if error.where is not None:
            raise
        fix = error.fix or "the config and the weights of one dictionary"
        raise MechstudyError(error.what, where=str(local), facts=error.facts, fix=fix) from error


def local_path(place: AnyPath) -> Path:
    """The path itself, or the local copy of what it names on the hub."""
    return hub.pull(str(place)) if hub.is_hub(str(place)) else Path(place)


def format_of(path: AnyPath) -> tuple[str, Path]:
    """The format of the dictionary at a path, and the folder or file to read.

    Raises:
        MechstudyError: it is a file of no known format, or a folder of several dictionaries.
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


def is_cross_layer(path: Path) -> bool:
    """Whether a folder holds a cross-layer transcoder of circuit-tracer's format."""
    return path.is_dir() and any(path.glob("W_enc_*.safetensors"))


def dictionary_paths(path: Path) -> list[Path]:
    """Every dictionary at a local path, ordered by the numbers in their names.

    It is the path itself where that holds one, else its ``layer_N.safetensors``, else its folders that hold one.

    Raises:
        MechstudyError: there is none.
    """
    if not path.is_dir() or _holds_one(path):
        return [path]
    inside = [child for child in path.iterdir() if re.fullmatch(r"layer_\d+\.safetensors", child.name)]
    inside = inside or [child for child in path.iterdir() if child.is_dir() and _holds_one(child)]
    if not inside:
        raise MechstudyError(
            "there is no dictionary here, nor one folder down",
            where=str(path),
            facts={"looked for": ", ".join(WEIGHTS) + ", layer_*.safetensors, W_enc_*.safetensors"},
            fix="the folder that holds one",
        )
    return sorted(inside, key=lambda child: [int(n) for n in re.findall(r"\d+", child.name)] or [0])


def _holds_one(folder: Path) -> bool:
    return any((folder / name).exists() for name in (*WEIGHTS, saelens.CFG))


def _refuse_several(path: Path) -> None:
    if (path / "W_enc_0.safetensors").exists():
        raise MechstudyError(
            "this is a cross-layer transcoder", where=str(path), fix="CrossLayerTranscoder.load, which reads all layers"
        )
    if files := sorted(path.glob("layer_*.safetensors")):
        raise MechstudyError(
            f"this is a set of {len(files)} transcoders", where=str(path), fix=f"one of them: {path / files[0].name}"
        )
