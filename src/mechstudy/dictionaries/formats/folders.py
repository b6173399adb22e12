"""Writes a dictionary's folder: all files or none, and no files of an earlier dictionary left."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.stored import AnyPath

WEIGHTS = {  # file names that identify the format of a folder
    "SAELens": r"sae_weights\.safetensors",
    "sparsify": r"sae\.safetensors",
    "dictionary_learning": r"ae\.pt",
    "Gemma Scope": r"params\.(npz|safetensors)|params_layer_\d+\.safetensors",
    "Llama Scope": r"hyperparams\.json",
    "Qwen-Scope": r"layer\d+\.sae\.pt",
    "a transcoder set": r"layer_\d+\.safetensors",
    "a cross-layer transcoder": r"W_(enc|dec)_\d+\.safetensors",
}


@contextmanager
def replacing(folder: AnyPath, owner: str, config: str, also: Sequence[str] = ()) -> Iterator[Path]:
    """A new folder to write into; at the end its files take the place of an earlier dictionary's in ``folder``.

    Files that only the earlier one had (the last layers of a larger set) are deleted; all other files stay. If writing
    fails, the earlier dictionary is unchanged. ``config`` is deleted first and written last, so that a killed process
    leaves no mixture that would load.

    Args:
        folder: where the dictionary belongs.
        owner: a key of `WEIGHTS`.
        config: name of the file without which the folder does not load.
        also: names of further files that belong to the earlier dictionary.

    Raises:
        MechstudyError: the folder holds a dictionary of another kind, or cannot be written.
    """
    folder = Path(folder)
    _refuse_others(folder, owner)
    partial = folder / f".{owner.rpartition(' ')[2]}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        try:
            yield partial
            for old in _matching(folder, WEIGHTS[owner]):
                if not (partial / old.name).exists():
                    old.unlink()
            for name in (config, *also):
                (folder / name).unlink(missing_ok=True)
            for new in sorted(partial.iterdir(), key=lambda path: (path.name == config, path.name)):
                new.replace(folder / new.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise MechstudyError(
            "the dictionary cannot be written", where=str(folder), facts={"reason": str(error)},
            fix="another folder, or room on the disk",
        ) from error  # fmt: skip
    except MechstudyError as error:
        if error.where == str(partial):
            raise MechstudyError(error.what, where=str(folder), facts=error.facts, fix=error.fix) from error
        raise


def _refuse_others(folder: Path, owner: str) -> None:
    for name, pattern in WEIGHTS.items():
        if name != owner and (others := _matching(folder, pattern)):
            raise MechstudyError(
                f"the folder holds a dictionary of another kind: {name}",
                where=str(folder),
                facts={"found": ", ".join(path.name for path in others[:4])},
                fix="a new folder",
            )


def _matching(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(pattern, path.name))
