"""Reads state dicts that torch saved, with the weights-only loader: no pickle is executed."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError

_LONGEST = 1 << 24  # bytes of a pickle that are looked through for the names in it
_N_PICKLES = 5  # that torch.save wrote one behind the other, before it wrote zip files
_OF_TENSORS = re.compile(r"torch\.\w+|torch\._utils\.\w+|torch\.storage\.\w+|collections\.OrderedDict")


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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the unpickler raises whatever a damaged or hostile file provokes
        raise _unread(path, what) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        fix = "save its state_dict() again with torch.save"
        raise MechstudyError(f"{path.name} holds no state dict", where=str(path), facts={"read as": what}, fix=fix)
    return {str(name): tensor for name, tensor in content.items()}


def _unread(path: Path, what: str) -> MechstudyError:
    """Why a file was not loaded: it needs Python's pickle, or it is damaged."""
    facts = {"read as": what}
    if names := _named(path):
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return MechstudyError(
            f"{path.name} is a pickle of more than tensors: loading it could run code, so it is not loaded",
            where=str(path),
            facts=facts | {"names": ", ".join(names[:4]) + more},
            fix="if you trust it, load it with the tool that wrote it, and save its tensors alone: as safetensors in "
            "SAELens' format, or torch.save(dictionary.state_dict(), path)",
        )
    return MechstudyError(
        f"{path.name} is damaged or truncated, or torch.save did not write it",
        where=str(path),
        facts=facts | {"size": f"{path.stat().st_size:,} bytes"},
        fix="copy or download it again; or save its tensors: as safetensors in SAELens' format, or "
        "torch.save(dictionary.state_dict(), path)",
    )


def _named(path: Path) -> list[str]:
    """Classes and functions that the file names beside those of tensors. It is only read, never unpickled."""
    names: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(inside) as file:
                    content = file.read(_LONGEST)
        at = 0
        for _ in range(_N_PICKLES):
            texts, end = list[str](), 0
            for op, value, place in pickletools.genops(content[at:]):
                texts += [value] if isinstance(value, str) and "UNICODE" in op.name else []
                if op.name == "GLOBAL":
                    names[str(value).replace(" ", ".")] = None
                elif op.name == "STACK_GLOBAL":
                    names[".".join(texts[-2:])] = None
                end = place or 0
            at += end + 1
    except (OSError, ValueError, StopIteration, UnicodeDecodeError, zipfile.BadZipFile, NotImplementedError):
        pass  # where the file ends, or is none: what was found before counts
    return [name for name in names if not _OF_TENSORS.fullmatch(name)]
