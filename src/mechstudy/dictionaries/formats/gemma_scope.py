"""Gemma Scope (``params.npz``) and Gemma Scope 2 (``params.safetensors``, ``config.json``). JumpReLU; read only.

Arrays: w_enc [d, F], w_dec [F, d], b_enc [F], b_dec [d], threshold [F], and affine_skip_connection [d, d], used as
x @ affine_skip_connection, of a transcoder that has one. A cross-layer transcoder is ``params_layer_N.safetensors`` for
every layer, with w_dec [F, L, d]; what a feature writes to earlier layers is left out, as circuit-tracer does.

config.json names the modules of Hugging Face's Gemma: ``post_feedforward_layernorm.output`` is `mlp_out`. Without it
(Gemma Scope, whose files say nothing) the folders' names decide.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.cross_layer import Clt, chosen_layers
from mechstudy.dictionaries.formats.fields import Fields, read_json
from mechstudy.dictionaries.formats.hooks import module_site
from mechstudy.dictionaries.formats.tensors import of_one_dtype, read_safetensors, require, shape_of
from mechstudy.dictionaries.stored import DictionaryKind, DictionaryMeta, FileTensor, StoredDictionary

FILES = ("params.npz", "params.safetensors")
CLT_FILE = re.compile(r"(?:params_)?layer_(\d+)\.safetensors")
_CFG = "config.json"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}
_SKIP = "affine_skip_connection"


def read(path: Path, *, mapped: bool = False) -> StoredDictionary:
    """Read one file. NumPy's pickles are not read. Matrices may stay ``mapped`` from a safetensors file, unchecked.

    Raises:
        MechstudyError: it is damaged, or lacks an array, or config.json names another architecture.
    """
    stored = _arrays(path) if path.suffix == ".npz" else read_safetensors(path)
    names = {_NAMES.get(name, name): name for name in stored}
    t = {name: stored[theirs] for name, theirs in names.items()}
    d_in, d_sae = shape_of(t, "W_enc", path)
    d_out = shape_of(t, "W_dec", path)[1]
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_enc": (d_sae,)}
    shapes |= {"b_dec": (d_out,), "threshold": (d_sae,)}
    require(t, shapes | ({_SKIP: (d_in, d_out)} if _SKIP in t else {}), path, mapped=mapped)
    config = _config(path.parent)
    site_in, site_out = _sites(path) if config is None else _stated_sites(config, path)
    if config is not None and config.flag("affine_connection", False) != (_SKIP in t):
        raise MechstudyError(
            "config.json and the weights do not agree on an affine connection", where=str(path),
            facts={_CFG: str(config.flag("affine_connection", False)), path.name: str(_SKIP in t)},
            fix="the config and the weights of one dictionary",
        )  # fmt: skip
    kind: DictionaryKind = "skip_transcoder" if _SKIP in t else "sae" if site_in == site_out else "transcoder"
    weights = {name: t[name] for name in shapes} | ({"W_skip": t[_SKIP].T.contiguous()} if _SKIP in t else {})
    model = _model(config) if config is not None else ""
    metadata = {"model_name": model} if model else {}
    meta = DictionaryMeta(kind, "jumprelu", d_in, d_out, d_sae, None, site_in, site_out, metadata)
    mappable = () if path.suffix == ".npz" else ("W_enc", "W_dec")
    files = {name: FileTensor(path, names[name]) for name in mappable}
    return StoredDictionary(meta, **of_one_dtype(weights), files=files)


def clt_files(folder: Path) -> list[Path]:
    """The layers' files of a cross-layer transcoder, in order.

    Raises:
        MechstudyError: a layer is missing.
    """
    by_layer = {int(match[1]): path for path in folder.iterdir() if (match := CLT_FILE.fullmatch(path.name))}
    missing = sorted(set(range(max(by_layer, default=0) + 1)) - set(by_layer))
    if missing:
        raise MechstudyError(
            "a cross-layer transcoder has a file for every layer from 0 on", where=str(folder),
            facts={"missing": ", ".join(map(str, missing))}, fix="copy or download the folder again",
        )  # fmt: skip
    return [by_layer[layer] for layer in sorted(by_layer)]


def read_clt(files: Sequence[Path], only: int | None = None) -> Clt:
    """Read a cross-layer transcoder from the files of layers 0, 1, ..., or ``only`` one layer of it.

    Raises:
        MechstudyError: a tensor is missing, damaged or misshapen, or there is an affine connection.
    """
    L = len(files)
    wanted = chosen_layers(L, only, files[0].parent)
    files = [files[layer] for layer in wanted]
    layers = [read_safetensors(path) for path in files]
    d, d_sae = shape_of(layers[0], "w_enc", files[0])
    shapes = {"w_enc": (d, d_sae), "b_enc": (d_sae,), "w_dec": (d_sae, L, d), "b_dec": (d,), "threshold": (d_sae,)}
    for path, t in zip(files, layers, strict=True):
        require(t, shapes, path)
        if _SKIP in t:
            raise MechstudyError(
                "a cross-layer transcoder with an affine connection cannot be represented", where=str(path),
                fix="the one without: its folder's name has no _affine",
            )  # fmt: skip
    config = _config(files[0].parent)
    return {
        "enc": [t["w_enc"].T for t in layers], "b_enc": [t["b_enc"] for t in layers],
        "dec": [t["w_dec"][:, layer:] for layer, t in zip(wanted, layers, strict=True)],
        "b_dec": torch.stack([t["b_dec"] for t in layers]), "threshold": [t["threshold"] for t in layers],
        "model_name": "" if config is None else _model(config), "site_in": "mlp_in", "site_out": "mlp_out",
        "hookpoint": "",
    }  # fmt: skip


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise MechstudyError(
            "the weights are damaged", where=str(path), facts={"reason": str(error)}, fix="download the file again"
        ) from error


def _config(folder: Path) -> Fields | None:
    """config.json of Gemma Scope 2; None where there is none."""
    if not (folder / _CFG).is_file():
        return None
    fields = Fields(read_json(folder / _CFG), folder / _CFG)
    if (name := fields.text("architecture", "jump_relu")) != "jump_relu":
        raise MechstudyError(
            f"architecture {name!r} cannot be used here: it is not known", where=str(folder / _CFG),
            facts={"known": "jump_relu"}, fix="one with jump_relu",
        )  # fmt: skip
    return fields


def _model(config: Fields) -> str:
    """The model's name on the hub: "gemma-v3-1b-pt" is google/gemma-3-1b-pt."""
    name = config.text("model_name").replace("-v3", "-3")
    return name if "/" in name or not name else f"google/{name}"


def _stated_sites(config: Fields, path: Path) -> tuple[str, str]:
    hooks = [config.text(f"hf_hook_point_{end}") for end in ("in", "out")]
    if not hooks[0]:
        return _sites(path)
    site_in, site_out = (_site(hook, _model(config) or "gemma-3") for hook in (hooks[0], hooks[1] or hooks[0]))
    return site_in, site_out


def _site(hook: str, model: str) -> str:
    heads = re.fullmatch(r"(?:\w+\.)*layers\.(\d+)\.self_attn\.o_proj\.input", hook)
    return f"blocks.{heads[1]}.attn.hook_z" if heads else module_site(hook, model)


def site_is_assumed(path: Path) -> bool:
    """Whether neither config.json nor the folders' names say which site a file is of: it is taken for `resid_post`."""
    config = _config(path.parent)
    if config is not None and config.text("hf_hook_point_in"):
        return False
    names = "/".join(path.absolute().parent.parts)
    return re.search(r"(?<![a-z])res(id\w*)?(?![a-z])|transcoder|attn|-att|mlp", names) is None


def _sites(path: Path) -> tuple[str, str]:
    """Sites of a path like ``layer_12/width_16k/average_l0_41/params.npz`` or ``resid_post/layer_12_width_16k/...``."""
    folders = path.absolute().parent.parts
    layer = next((m[1] for name in reversed(folders) if (m := re.match(r"layer_(\d+)", name))), None)
    if layer is None:
        return path.parent.name, path.parent.name
    names = "/".join(folders)
    if "transcoder" in names:
        first = path.suffix == ".npz"  # Gemma Scope 1 read before the norm's weight: see `fitted`
        return f"blocks.{layer}.ln2.hook_normalized" if first else f"mlp_in.{layer}", f"mlp_out.{layer}"
    if "attn" in names or "-att" in names:  # the heads' outputs, before the output projection
        return f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.attn.hook_z"
    site = f"{'mlp_out' if 'mlp' in names else 'resid_post'}.{layer}"
    return site, site
