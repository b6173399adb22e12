"""Dictionaries by layer, of finished runs too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from mechstudy import dictionaries
from mechstudy.api import artifacts
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.hub import is_hub
from mechstudy.dictionaries.loading import DictionarySet, Place


def load_dictionaries(
    source: Place | Iterable[Place] | Mapping[int, Place],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> DictionarySet:
    """Load dictionaries (SAEs or transcoders) by layer.

        ms.load_dictionaries("runs/demo")  # all that a run trained
        ms.load_dictionaries("my-dictionary")  # one folder, of any format that is read
        ms.load_dictionaries("transcoders")  # a folder of such folders, or of layer_*.safetensors
        ms.load_dictionaries(["layer12", "hf:owner/name/layer13", dictionary])
        ms.load_dictionaries({12: "a", 13: "b"})  # where the files do not name their layer

    Args:
        source: as in the examples; a run's latest artifact of each layer is loaded.
        device: where the weights go; the model's, for graphs and interventions.
        dtype: None keeps the file's.

    Raises:
        MechstudyError: nothing is there, a file is damaged, two read one layer, or one names no layer.
    """
    if isinstance(source, Mapping):
        return dictionaries.load_dictionaries(source, device=device, dtype=dtype)
    listed = [source] if isinstance(source, str | os.PathLike | Dictionary) else source
    places = [place for one in listed for place in _places(one)]
    return dictionaries.load_dictionaries(places, device=device, dtype=dtype)


def _places(source: Place) -> list[Place]:
    """The folders of a run's dictionaries; anything else itself."""
    if isinstance(source, Dictionary) or is_hub(str(source)):
        return [source]
    path = Path(source).expanduser()
    if not artifacts.is_run(path):
        return [path]
    folders = artifacts.dictionary_folders(artifacts.latest(path))
    if not folders:
        raise MechstudyError(
            "this run has no finished dictionaries", where=str(path), fix="`mechstudy status` says what it is doing"
        )
    return [*folders.values()]
