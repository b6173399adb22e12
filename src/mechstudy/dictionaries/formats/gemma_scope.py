"""Gemma Scope (``params.npz``) and Gemma Scope 2 (``params.safetensors``): JumpReLU autoencoders and transcoders.

W_enc [d, F], b_enc, W_dec [F, d], b_dec, threshold, in the second release with small letters (w_enc, w_dec) and for
transcoders perhaps affine_skip_connection [d_in, d_out], used as x @ it. Their sites follow from the folder's name.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.tensors import of_one_dtype, read_safetensors, require, shape_of
from mechstudy.dictionaries.stored import DictionaryKind, DictionaryMeta, StoredDictionary

FILES = ("params.npz", "params.safetensors")
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}


def read(path: Path) -> StoredDictionary:
    """Read one file. NumPy's pickles are not read.

    Raises:
        MechstudyError: it is damaged, or lacks an array.
    """
    t = _arrays(path) if path.suffix == ".npz" else read_safetensors(path)
    t = {_NAMES.get(name, name): tensor for name, tensor in t.items()}
    d_in, d_sae = shape_of(t, "W_enc", path)
    d_out = shape_of(t, "W_dec", path)[1]
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_enc": (d_sae,)}
    shapes |= {"b_dec": (d_out,), "threshold": (d_sae,)}
    skip = "affine_skip_connection"
    require(t, shapes | ({skip: (d_in, d_out)} if skip in t else {}), path)
    site_in, site_out = _sites(path)
    kind: DictionaryKind = "skip_transcoder" if skip in t else "sae" if site_in == site_out else "transcoder"
    weights = {name: t[name] for name in shapes} | ({"W_skip": t[skip].T.contiguous()} if skip in t else {})
    meta = DictionaryMeta(kind, "jumprelu", d_in, d_out, d_sae, None, site_in, site_out)
    return StoredDictionary(meta, **of_one_dtype(weights))


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise MechstudyError(
            "the weights are damaged", where=str(path), facts={"reason": str(error)}, fix="download the file again"
        ) from error


def _sites(path: Path) -> tuple[str, str]:
    """Sites of a path like ``layer_12/width_16k/average_l0_41/params.npz`` or ``resid_post/layer_12_width_16k/...``."""
    folders = path.absolute().parent.parts
    layer = next((m[1] for name in reversed(folders) if (m := re.match(r"layer_(\d+)", name))), None)
    if layer is None:
        return path.parent.name, path.parent.name
    names = "/".join(folders)
    if "transcoder" in names:
        return f"mlp_in.{layer}", f"mlp_out.{layer}"
    if "attn" in names or "-att" in names:  # the heads' outputs, before the output projection
        return f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.attn.hook_z"
    site = f"{'mlp_out' if 'mlp' in names else 'resid_post'}.{layer}"
    return site, site
