"""Qwen-Scope: a file ``layerN.sae.pt`` for each layer's residual stream. TopK; read only, weights only.

A file holds W_enc [F, d], W_dec [d, F], b_enc [F] and b_dec [d], and says nothing else. The layer is in its name; k and
the model are in the name of the repository, such as ``SAE-Res-Qwen3-8B-Base-W64K-L0_50``.
"""

from __future__ import annotations

import re
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.fields import Fields, read_json
from mechstudy.dictionaries.formats.pickles import read_state_dict
from mechstudy.dictionaries.formats.tensors import of_one_dtype, require, shape_of, transposed
from mechstudy.dictionaries.stored import DictionaryMeta, StoredDictionary

FILE = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-(.+)-W\d+K-L0_(\d+)")
_CFG = "config.json"


def read(path: Path, *, mapped: bool = False) -> StoredDictionary:
    """Read one layer's file; ``mapped`` leaves values of matrices unread and unchecked.

    Raises:
        MechstudyError: it is damaged or lacks a tensor, or neither a folder's name nor a config.json beside it says k.
    """
    name = FILE.fullmatch(path.name)
    if name is None:
        raise MechstudyError(f"{path.name} does not name its layer", where=str(path), fix="layerN.sae.pt, as published")
    t = read_state_dict(path, "Qwen-Scope")
    d_sae, d = shape_of(t, "W_enc", path)
    require(t, {"W_enc": (d_sae, d), "b_enc": (d_sae,), "W_dec": (d, d_sae), "b_dec": (d,)}, path, mapped=mapped)
    k, model = _k_and_model(path)
    site = f"resid_post.{name[1]}"
    meta = DictionaryMeta("sae", "topk", d, d, d_sae, k, site, site, {"model_name": model, "architecture": "topk"})
    W_enc, W_dec = (transposed(t[name], mapped=mapped) for name in ("W_enc", "W_dec"))
    weights = {"W_enc": W_enc, "b_enc": t["b_enc"], "W_dec": W_dec, "b_dec": t["b_dec"]}
    return StoredDictionary(meta, **of_one_dtype(weights), files={})


def _k_and_model(path: Path) -> tuple[int, str | None]:
    if (path.parent / _CFG).is_file():
        fields = Fields(read_json(path.parent / _CFG), path.parent / _CFG)
        for name in ("k", "top_k"):
            if name in fields:
                return fields.whole(name), fields.text("model_name") or None
    for part in reversed(path.absolute().parts):
        if match := _REPOSITORY.search(part):
            return int(match[2]), f"Qwen/{match[1]}"
    raise MechstudyError(
        "a Qwen-Scope file does not say k, and neither does the folder it is in",
        where=str(path),
        facts={"looked for": "k in config.json; L0_<k> in a folder's name, as in SAE-Res-Qwen3-8B-Base-W64K-L0_50"},
        fix=f'a folder named as the repository, or {_CFG} beside it with {{"k": 50}}',
    )
