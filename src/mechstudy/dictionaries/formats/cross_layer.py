"""circuit-tracer's cross-layer transcoders on disk: two files a layer, and one ``config.yaml``.

``W_enc_l.safetensors``: W_enc_l [F, d], b_enc_l [F], b_dec_l [d], and for JumpReLU threshold_l [F]; without thresholds
the activation is a ReLU. ``W_dec_l.safetensors``: W_dec_l [F, L - l, d]; index j writes to layer l + j.

    f_l = activation(W_enc_l x_l + b_enc_l),   y_m = b_dec_m + sum over l <= m of f_l W_dec_l[:, m - l]

The format has no skip path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.circuit_tracer import CONFIG, read_config, refuse_negative, write_config
from mechstudy.dictionaries.formats.fields import Fields
from mechstudy.dictionaries.formats.folders import replacing
from mechstudy.dictionaries.formats.hooks import HOOKPOINT, config_hook, named_module, site_name
from mechstudy.dictionaries.formats.stated import Claim, agreed, claims_of, refuse_layout, without_thresholds
from mechstudy.dictionaries.formats.tensors import read_safetensors, require, shape_of, write_safetensors
from mechstudy.dictionaries.stored import AnyPath

META = "mechstudy.json"  # our own fields, beside circuit-tracer's files


class Clt(TypedDict):
    """Content of a folder, of all L layers or of one. A ReLU has no `threshold`.

    Sites are kinds (``mlp_in``), or names of other hooks. `hookpoint` is the module of layer 0 whose own output the
    file names (`hooks.named_module`); "" where it names none.
    """

    enc: list[Tensor]  # of every layer [F, d]
    b_enc: list[Tensor]  # [F]
    dec: list[Tensor]  # [F, L - l, d]
    b_dec: Tensor  # [L, d]
    threshold: list[Tensor] | None  # [F]
    model_name: str
    site_in: str
    site_out: str
    hookpoint: str


def write_clt(
    folder: AnyPath,
    enc: Sequence[Tensor],
    b_enc: Sequence[Tensor],
    dec: Sequence[Tensor],
    b_dec: Tensor | Sequence[Tensor],
    threshold: Sequence[Tensor] | None = None,
    *,
    model_name: str = "",
    site_in: str = "mlp_in",
    site_out: str = "mlp_out",
    scan: str = "",
) -> None:
    """Write a cross-layer transcoder that circuit-tracer loads, in place of an earlier one.

    Shapes as in `Clt`; L is the number of encoders. Thresholds below 0 are written as 0, because circuit-tracer has no
    ReLU behind them.

    Raises:
        MechstudyError: a layer lacks something or has another shape, or a value is not finite; nothing is written then.
            The folder cannot be written, or holds a dictionary of another kind.
    """
    folder = Path(folder)
    lists = {"enc": enc, "b_enc": b_enc, "dec": dec, "b_dec": b_dec}
    lists |= {} if threshold is None else {"threshold": [tensor.clamp_min(0.0) for tensor in threshold]}
    if not len(enc) or len({len(values) for values in lists.values()}) > 1:
        raise MechstudyError(
            "every layer has one encoder, its biases, one decoder and perhaps a threshold",
            where=str(folder),
            facts={name: f"{len(values)} layers" for name, values in lists.items()},
            fix="as many of each as the model has layers",
        )
    layers = [_named(layer, {name: values[layer] for name, values in lists.items()}) for layer in range(len(enc))]
    size = shape_of(layers[0], "W_enc_0", folder)
    for layer, tensors in enumerate(layers):
        require(tensors, _shapes(layer, len(layers), *size, threshold is not None), folder)
    with replacing(folder, "a cross-layer transcoder", CONFIG, also=(META,)) as place:
        for layer, tensors in enumerate(layers):
            name = f"W_dec_{layer}"
            write_safetensors({name: tensors.pop(name)}, place / f"{name}.safetensors")
            write_safetensors(tensors, place / f"W_enc_{layer}.safetensors")
        write_config(place, "cross_layer_transcoder", model_name, scan, site_in, site_out)


def read_clt(folder: AnyPath, only: int | None = None) -> Clt:
    """Read what `write_clt` or circuit-tracer wrote, or ``only`` one layer of it.

    Raises:
        MechstudyError: a file or tensor is missing, damaged or misshapen, layers are missing, or thresholds negative.
    """
    folder = Path(folder)
    matches = (re.fullmatch(r"W_enc_(\d+)", path.stem) for path in folder.glob("W_enc_*.safetensors"))
    present = {int(match[1]) for match in matches if match}
    L = max(present, default=-1) + 1
    if not L or len(present) < L:
        raise MechstudyError(
            "a cross-layer transcoder has W_enc_0.safetensors and every further layer",
            where=str(folder),
            facts={"missing": ", ".join(map(str, sorted(set(range(L)) - present))) or "all"},
            fix="copy or download the folder again",
        )
    wanted = chosen_layers(L, only, folder)
    layers = [
        read_safetensors(folder / f"W_enc_{layer}.safetensors")
        | read_safetensors(folder / f"W_dec_{layer}.safetensors")
        for layer in wanted
    ]
    first = wanted[0]
    size = shape_of(layers[0], f"W_enc_{first}", folder / f"W_enc_{first}.safetensors")
    jumps = f"threshold_{first}" in layers[0]
    for layer, tensors in zip(wanted, layers, strict=True):
        path = folder / f"W_enc_{layer}.safetensors"
        require(tensors, _shapes(layer, L, *size, jumps), path)
        if jumps:
            refuse_negative(tensors[f"threshold_{layer}"], path)

    def of(name: str) -> list[Tensor]:
        return [tensors[f"{name}_{layer}"] for layer, tensors in zip(wanted, layers, strict=True)]

    config = read_config(folder)
    if (kind := config.text("model_kind")) != "cross_layer_transcoder":
        raise MechstudyError(
            f"model_kind is {kind!r}", where=str(folder / CONFIG), fix="model_kind: cross_layer_transcoder"
        )
    refuse_layout(config, "cross-layer", skip=False, path=folder)
    _check_activation(config, layers, folder, jumps=jumps)
    hooks = [
        config_hook(config.text(f"feature_{end}_hook", default))
        for end, default in (("input", "hook_resid_mid"), ("output", "hook_mlp_out"))
    ]
    model, named = config.text("model_name"), [f"blocks.0.{hook}" for hook in hooks]
    sites = [
        hook if (site := site_name(name, model)).startswith("blocks.") else site[:-2]
        for name, hook in zip(named, hooks, strict=True)
    ]
    return {
        "enc": of("W_enc"), "b_enc": of("b_enc"), "dec": of("W_dec"), "b_dec": torch.stack(of("b_dec")),
        "threshold": of("threshold") if jumps else None, "model_name": model,
        "site_in": sites[0], "site_out": sites[1], "hookpoint": named_module(named[1]).get(HOOKPOINT, ""),
    }  # fmt: skip


def chosen_layers(n_layers: int, only: int | None, where: Path) -> range:
    """All layers, or the only one that is wanted.

    Raises:
        MechstudyError: there is no such layer.
    """
    if only is None:
        return range(n_layers)
    if not 0 <= only < n_layers:
        raise MechstudyError(
            f"the cross-layer transcoder has no layer {only}",
            where=str(where),
            facts={"layers": f"0-{n_layers - 1}"},
        )
    return range(only, only + 1)


def _check_activation(config: Fields, layers: Sequence[dict[str, Tensor]], folder: Path, *, jumps: bool) -> None:
    """Refuse activations other than the thresholds that the files hold, or none (ReLU)."""
    claims = claims_of(config)
    claims |= {
        f"tensor {name}": Claim("topk") for tensors in layers for name in tensors if re.fullmatch("k(_.*)?", name)
    }
    if any(claim.activation == "topk" for claim in claims.values()):
        raise MechstudyError(
            "a cross-layer transcoder with topk cannot be represented here", where=str(folder),
            facts={"known": "relu, jump_relu"}, fix="one with thresholds, or a ReLU",
        )  # fmt: skip
    claim = agreed(claims | ({"thresholds": Claim("jump_relu")} if jumps else {}), folder)
    if claim is not None and claim.activation == "jump_relu" and not jumps:
        raise without_thresholds(claims, folder)


def _named(layer: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"enc": "W_enc", "dec": "W_dec"}
    return {f"{names.get(name, name)}_{layer}": tensor for name, tensor in tensors.items()}


def _shapes(layer: int, L: int, d_sae: int, d: int, jumps: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"enc": (d_sae, d), "b_enc": (d_sae,), "dec": (d_sae, L - layer, d)}
    shapes |= {"b_dec": (d,)} | ({"threshold": (d_sae,)} if jumps else {})
    names = {"enc": "W_enc", "dec": "W_dec"}
    return {f"{names.get(name, name)}_{layer}": shape for name, shape in shapes.items()}
