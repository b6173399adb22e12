"""circuit-tracer's transcoder sets: ``layer_N.safetensors`` for every layer and one ``config.yaml``; and Gemma Scope.

A file holds W_enc [F, d], W_dec [F, d], b_enc, b_dec, and where there are any ``activation_function.threshold`` and
W_skip. Without a threshold the activation is a ReLU. A set covers the layers from 0 on without a gap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import Kind
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.formats.tensors import read_safetensors, require

CONFIG, GEMMA_SCOPE = "config.yaml", "params.npz"
THRESHOLD = "activation_function.threshold"


def read(path: Path) -> Dictionary:
    """Read one layer's file.

    Raises:
        MechstudyError: it is damaged, or lacks a tensor.
    """
    tensors = read_safetensors(path)
    require(tensors, {"W_enc": tensors["W_enc"].shape if "W_enc" in tensors else (0, 0)}, path)
    d_sae, d_in = tensors["W_enc"].shape
    require(tensors, {"W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}, path)
    found = re.search(r"(\d+)(?!.*\d)", path.stem)
    layer = int(found[1]) if found else 0
    threshold = tensors.get(THRESHOLD)
    return _jumprelu(
        tensors["W_enc"].T.contiguous(), tensors["b_enc"], tensors["W_dec"], tensors["b_dec"],
        torch.zeros_like(tensors["b_enc"]) if threshold is None else threshold,
        tensors.get("W_skip"), f"mlp_in.{layer}", f"mlp_out.{layer}",
    )  # fmt: skip


def read_gemma_scope(path: Path) -> Dictionary:
    """Read Gemma Scope's ``params.npz``: a JumpReLU autoencoder, W_enc [d, F]. NumPy's pickles are not read.

    Raises:
        MechstudyError: it is damaged, or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError) as error:
        raise MechstudyError("the weights are damaged", where=str(path), facts={"reason": str(error)}) from error
    require(tensors, {"W_enc": tensors["W_enc"].shape if "W_enc" in tensors else (0, 0)}, path)
    d_in, d_sae = tensors["W_enc"].shape
    require(tensors, {"W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,), "threshold": (d_sae,)}, path)
    site = path.parent.name
    return _jumprelu(
        tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], tensors["b_dec"], tensors["threshold"], None, site, site
    )


def write_set(dictionaries: Mapping[int, Dictionary], folder: Path, *, model_name: str, scan: str = "") -> None:
    """Write a set that circuit-tracer loads.

    Raises:
        MechstudyError: a layer is missing, widths differ, or a dictionary is no transcoder with a threshold.
    """
    from ruamel.yaml import YAML
    from safetensors.torch import save_file

    missing = sorted(set(range(max(dictionaries, default=0) + 1)) - set(dictionaries))
    if missing or not dictionaries:
        raise MechstudyError(
            f"a transcoder set has every layer from 0 on, and {len(missing) or 'all'} are missing",
            facts={"missing": ", ".join(map(str, missing))},
            fix="dictionaries.layers: all",
        )
    if len({d.cfg.d_sae for d in dictionaries.values()}) > 1:
        raise MechstudyError("the transcoders of a set have one number of features", fix="one expansion for all layers")
    folder.mkdir(parents=True, exist_ok=True)
    for layer, dictionary in sorted(dictionaries.items()):
        if dictionary.cfg.kind == "sae" or dictionary.threshold is None:
            raise MechstudyError(
                f"layer {layer} is a {dictionary.cfg.kind} with {dictionary.cfg.activation}",
                fix="transcoders of any activation but topk, which circuit-tracer's files cannot say",
            )
        tensors: dict[str, Tensor] = {
            "W_enc": dictionary.W_enc.T,
            "W_dec": dictionary.W_dec,
            "b_enc": dictionary.b_enc,
            "b_dec": dictionary.b_dec,
            THRESHOLD: dictionary.threshold.clamp_min(0.0),
        }
        if dictionary.W_skip is not None:
            tensors["W_skip"] = dictionary.W_skip
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, folder / f"layer_{layer}.safetensors")
    config = {
        "model_kind": "transcoder_set",
        "model_name": model_name,
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "scan": scan or model_name,
    }
    with (folder / CONFIG).open("w") as file:
        YAML(typ="safe").dump(config, file)


def _jumprelu(
    W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, threshold: Tensor, skip: Tensor | None, *sites: str
) -> Dictionary:
    d_in, d_sae = W_enc.shape
    site_in, site_out = sites
    kind: Kind = "sae" if site_in == site_out else "transcoder" if skip is None else "skip_transcoder"
    meta = DictionaryMeta(kind, "jumprelu", d_in, W_dec.shape[1], d_sae, None, site_in, site_out)
    return Dictionary(meta, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, W_skip=skip, threshold=threshold)
