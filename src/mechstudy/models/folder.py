"""A Hugging Face model folder on this machine: its config, weights, tokenizer and name, checked without loading them.

Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.models.readable import check_readable
from mechstudy.models.tokenizer_files import check_tokenizer_files

CARD = "mechstudy_source.json"  # beside a model that mechstudy has converted
_SNAPSHOT = re.compile(r"models--(?P<repo>[^/]+)/snapshots/(?P<commit>[^/]+)$")
_QUANTISATION = ("quantization_config", "compression_config", "quantization")  # the last is MLX's
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "added_tokens.json")
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's ``config.json``.

    Raises:
        MechstudyError: there is none, it cannot be read, or it names no ``model_type``.
    """
    path = folder / "config.json"
    check_folder_opens(folder)
    if not os.path.lexists(path):
        if (folder / "adapter_config.json").exists():
            raise _is_adapter(folder)
        raise MechstudyError(
            "no config.json: this is not a Hugging Face model folder",
            where=str(folder),
            fix="the folder that save_pretrained wrote: config.json, tokenizer.json, *.safetensors",
        )
    check_readable(path)
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MechstudyError(
            f"config.json cannot be read: {error}", where=str(folder), fix="fetch or copy it again"
        ) from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise MechstudyError(
            "config.json names no model_type", where=str(folder), fix="the config.json of a Hugging Face model"
        )
    return config


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuses a model whose weights are quantised.

    Raises:
        MechstudyError: the config, or that of its language model in it, says so; the message names the method.
    """
    parts = (config, *(part for part in config.values() if isinstance(part, Mapping)))
    found = ((key, part[key]) for part in parts for key in _QUANTISATION if part.get(key))
    key, quantised = next(found, ("", None))
    if not quantised:
        return
    method = quantised.get("quant_method", "an unnamed method") if isinstance(quantised, Mapping) else "unknown"
    if method == "an unnamed method" and isinstance(quantised, Mapping):
        bits = quantised.get("bits")
        method = f"{bits} bits" if bits else "bitsandbytes" if any("bit" in name for name in quantised) else method
    raise _is_quantised(method, where, {key: "in config.json"})


def _is_quantised(method: str, where: str, facts: Mapping[str, str]) -> MechstudyError:
    return MechstudyError(
        f"the weights are quantised ({method}): graphs and interventions need them in float32 or bfloat16",
        where=where,
        facts=facts,
        fix="use the unquantised model; a GGUF file is dequantised: gguf:<file>",
    )


def check_folder(folder: Path) -> None:
    """Checks that a folder holds a config, complete unquantised safetensors weights, and a tokenizer.

    Raises:
        MechstudyError: it does not; the message names the file that is missing, broken, truncated or pickled.
    """
    if folder.is_file():
        raise MechstudyError(
            "this is a file, and a model is a folder",
            where=str(folder),
            fix=f"gguf:{folder.name}" if folder.suffix == ".gguf" else f"the folder that holds it: {folder.parent}",
        )
    if not folder.is_dir():
        raise MechstudyError(
            "no such model folder", where=str(folder), fix="the path of a folder, relative to the study file's folder"
        )
    check_config(read_config(folder), str(folder))
    if (folder / "adapter_config.json").exists():
        raise _is_adapter(folder)
    weights = weight_files(folder)
    missing = sorted(_indexed(folder) - {p.name for p in weights})
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise MechstudyError(f"{missing[0]} is missing{more}", where=str(folder), fix="fetch the model again")
    if not weights:
        pickles = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        raise MechstudyError(
            "the folder holds no safetensors weights",
            where=str(folder),
            facts={"pickled weights, never read": ", ".join(pickles)} if pickles else None,
            fix="convert them with save_pretrained(safe_serialization=True)" if pickles else "copy them there",
        )
    for path in weights:
        _check_safetensors(path)
    check_tokenizer_files(folder)
    for path in (*folder.glob("*.json"), *folder.glob("*.jinja")):  # each is read where it is there
        check_readable(path)
        if path.name in _SETTINGS:
            _check_json(path)


def _check_json(path: Path) -> None:
    try:
        whole = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        reason = "it is no object"
    except (ValueError, RecursionError) as error:
        whole, reason = False, str(error)
    if not whole:
        raise MechstudyError(
            f"{path.name} cannot be read as JSON: {reason}", where=str(path.parent), fix="fetch or copy it again"
        )


def check_folder_opens(folder: Path) -> None:
    """Checks that a folder, if it is there, can be listed and entered.

    Raises:
        MechstudyError: it cannot.
    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise MechstudyError(
            "the folder cannot be read: Permission denied", where=str(folder), fix=f"chmod u+rx {folder}"
        )


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files, in order of name."""
    return sorted(folder.glob("*.safetensors"))


def model_name(folder: Path) -> str:
    """The model's name: its repository's in a hub cache, that of the file it was converted from, else its folder's."""
    card = folder / CARD
    if card.exists():
        return str(json.loads(card.read_text())["name"])
    snapshot = _SNAPSHOT.search(os.path.realpath(folder))
    return snapshot["repo"].replace("--", "/", 1) if snapshot else Path(os.path.realpath(folder)).name


def hub_revision(folder: Path) -> str | None:
    """The commit of a snapshot in a hub cache; None for other folders."""
    snapshot = _SNAPSHOT.search(os.path.realpath(folder))
    return snapshot["commit"] if snapshot else None


def is_converted(folder: Path) -> bool:
    """Whether a folder holds a converted model."""
    return (folder / CARD).exists()


def _indexed(folder: Path) -> set[str]:
    """The weight files that the folder's index names."""
    index = folder / "model.safetensors.index.json"
    if not os.path.lexists(index):
        return set()
    check_readable(index)
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise MechstudyError(f"{index.name} cannot be read", where=str(folder), fix="fetch or copy it again") from None


def _check_safetensors(path: Path) -> None:
    """Compares the file's size with the one its header implies, and refuses weights that are no floats.

    Older quantised checkpoints say nothing of it in config.json.
    """
    check_readable(path)
    size = path.stat().st_size
    with path.open("rb") as f:
        head = f.read(8)
        length = int.from_bytes(head, "little") if len(head) == 8 else -1
        try:
            header = json.loads(f.read(length)) if 0 < length <= size - 8 else None
        except (json.JSONDecodeError, UnicodeDecodeError):
            header = None
    if not isinstance(header, dict):
        raise MechstudyError(
            "this is not a safetensors file, or it is truncated", where=str(path), fix="fetch or copy it again"
        )
    ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise MechstudyError(
            f"the file is truncated: {size:,} bytes of {expected:,}"
            if size < expected
            else f"the file has {size - expected:,} bytes too many",
            where=str(path),
            fix="fetch or copy it again",
        )
    for name, tensor in header.items():
        if name != "__metadata__" and "weight" in name.rpartition(".")[2] and tensor["dtype"] not in _FLOATS:
            raise _is_quantised(f"{name} is {tensor['dtype']}", str(path.parent), {"file": path.name})


def _is_adapter(folder: Path) -> MechstudyError:
    try:
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return MechstudyError(
        "the folder holds an adapter (adapter_config.json), not a whole model",
        where=str(folder),
        facts={"base model": str(base)} if base else None,
        fix="merge it into its base with peft (merge_and_unload) and save that with save_pretrained",
    )
