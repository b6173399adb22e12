"""OpenMOSS' dictionaries: Llama Scope (``hyperparams.json``) and Llama Scope 2 (``config.json`` with ``sae_type``).

Llama Scope: ``checkpoints/final.safetensors`` with encoder.weight [F, d], encoder.bias [F], decoder.weight [d, F],
decoder.bias [d], and one ``jump_relu_threshold`` for all features. As their own loader does, the average norms of the
data are folded into the weights, and then the norms of decoder rows, so that features have decoder rows of length one.

Llama Scope 2: ``sae_weights.safetensors`` with W_E [d, F], b_E [F], W_D [F, d], b_D [d],
``activation_function.log_jumprelu_threshold`` [F] for JumpReLU, and ``dataset_average_activation_norm.HOOK`` scalars.
A feature is gated by its pre-activation times the norm of its decoder row, and has the units of the raw activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.fields import Fields, read_json
from mechstudy.dictionaries.formats.hooks import site_name
from mechstudy.dictionaries.formats.tensors import of_one_dtype, read_safetensors, require, shape_of, without_centring
from mechstudy.dictionaries.stored import DictionaryKind, DictionaryMeta, FileTensor, StoredDictionary

CFG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
CFG_2, WEIGHTS_2 = "config.json", "sae_weights.safetensors"
_LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm."
_REFUSED = {
    "lorsa": "it replaces attention heads: a feature at a token reads the tokens before it",
    "clt": "it writes to several layers, and its files are not those of circuit-tracer",
    "crosscoder": "it reads several sites",
    "molt": "its features are matrices, not directions",
}


def read(folder: Path, *, mapped: bool = False) -> StoredDictionary:
    """Read a Llama Scope dictionary. Its matrices are computed, so that none stays ``mapped``.

    Raises:
        MechstudyError: a file, field or tensor is missing or damaged, or it is not one formula for all rows.
    """
    fields = Fields(read_json(folder / CFG), folder / CFG)
    path = folder / WEIGHTS
    t = read_safetensors(path)
    d_sae, d = shape_of(t, "encoder.weight", path)
    shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (d_sae, d), "encoder.bias": (d_sae,)}
    shapes |= {"decoder.weight": (d, d_sae)}
    shapes |= {"decoder.bias": (d,)} if fields.flag("use_decoder_bias", True) else {}
    require(t, shapes, path, mapped=mapped)
    _refuse(fields)
    norms = fields.table("dataset_average_activation_norm")
    scale_in, scale_out = _scales(fields, d, {end: norms.number(end) for end in ("in", "out") if end in norms})
    W_enc, W_dec = _wide(t["encoder.weight"]).T, _wide(t["decoder.weight"]).T * (scale_in / scale_out)
    b_enc = _wide(t["encoder.bias"]) / scale_in
    b_dec = _wide(t.get("decoder.bias", t["decoder.weight"].new_zeros(d))) / scale_out
    if fields.flag("sparsity_include_decoder_norm", True):
        W_enc, b_enc, W_dec = _unit_rows(W_enc, b_enc, W_dec)
    if fields.flag("apply_decoder_bias_to_pre_encoder", False):
        b_enc = without_centring(b_enc, b_dec, W_enc)
    weights = {"W_enc": W_enc.contiguous(), "b_enc": b_enc, "W_dec": W_dec.contiguous(), "b_dec": b_dec}
    activation = fields.text("act_fn", "relu").lower()
    jump = _not_negative(fields, "jump_relu_threshold")
    if activation == "topk" and jump > 0:  # their loader's rule: a topk with a calibrated threshold
        activation = "jumprelu"
    if activation == "jumprelu" and "jump_relu_threshold" not in fields:
        fields.number("jump_relu_threshold")  # names the missing field
    k = fields.whole("top_k") if activation == "topk" else None
    if activation in ("relu", "jumprelu"):
        weights["threshold"] = torch.full_like(b_enc, jump if activation == "jumprelu" else 0.0)
    return _stored(fields, activation, weights, k)


def read_2(folder: Path, *, mapped: bool = False) -> StoredDictionary:
    """Read a Llama Scope 2 dictionary. Matrices that need no scale may stay ``mapped`` from the file, unchecked.

    Raises:
        MechstudyError: a file, field or tensor is missing or damaged, or the kind cannot be represented.
    """
    fields = Fields(read_json(folder / CFG_2), folder / CFG_2)
    if (kind := fields.text("sae_type")) != "sae":
        raise MechstudyError(
            f"a Llama Scope 2 dictionary of type {kind!r} cannot be represented", where=str(folder),
            facts={"reason": _REFUSED.get(kind, "the type is not known")}, fix="a transcoder or SAE of that release",
        )  # fmt: skip
    path = folder / WEIGHTS_2
    t = read_safetensors(path)
    d, d_sae = shape_of(t, "W_E", path)
    activation = fields.text("act_fn", "relu").lower()
    shapes: dict[str, tuple[int, ...]] = {"W_E": (d, d_sae), "b_E": (d_sae,), "W_D": (d_sae, d)}
    shapes |= {"b_D": (d,)} if fields.flag("use_decoder_bias", True) else {}
    shapes |= {_LOG_THRESHOLD: (d_sae,)} if activation == "jumprelu" else {}
    hooks = [fields.text(f"hook_point_{end}") for end in ("in", "out")]
    folded = fields.text("norm_activation", "dataset-wise") != "dataset-wise"
    shapes |= {} if folded else {f"{_NORM}{hook}": () for hook in hooks}
    require(t, shapes, path, mapped=mapped)
    _refuse(fields)
    given = {} if folded else {end: float(t[_NORM + hook]) for end, hook in zip(("in", "out"), hooks, strict=True)}
    scale_in, scale_out = _scales(fields, d, given)
    W_enc, W_dec = _wide(t["W_E"]), _wide(t["W_D"])
    if scale_in != scale_out:
        W_dec = W_dec * (scale_in / scale_out)
    b_enc, b_dec = _wide(t["b_E"]) / scale_in, _wide(t.get("b_D", t["W_D"].new_zeros(d))) / scale_out
    by_norm = fields.flag("sparsity_include_decoder_norm", True)
    k = fields.whole("top_k") if activation == "topk" else None
    if activation == "topk" and by_norm:
        W_enc, b_enc, W_dec = _unit_rows(W_enc, b_enc, W_dec)
    weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if activation == "jumprelu":
        # A threshold is on the pre-activation of normalised rows, times the norm of the decoder row that was trained.
        gain = torch.linalg.vector_norm(_wide(t["W_D"]), dim=1) if by_norm else torch.ones_like(b_enc)
        weights["threshold"] = _wide(t[_LOG_THRESHOLD]).exp() / (gain * scale_in)
    elif activation == "relu":
        weights["threshold"] = torch.zeros_like(b_enc)
    files = {ours: FileTensor(path, name) for ours, name in (("W_enc", "W_E"), ("W_dec", "W_D"))
             if weights[ours] is t[name]}  # fmt: skip
    return _stored(fields, activation, weights, k, files)


def _stored(
    fields: Fields,
    activation: str,
    weights: dict[str, Tensor],
    k: int | None,
    files: Mapping[str, FileTensor] | None = None,
) -> StoredDictionary:
    d, d_sae = weights["W_enc"].shape
    if activation not in ("relu", "jumprelu", "topk"):
        raise MechstudyError(
            f"act_fn {activation!r} cannot be represented here", where=str(fields.where),
            facts={"known": "relu, jumprelu, topk"}, fix="a dictionary converted to jumprelu, as for inference",
        )  # fmt: skip
    hooks = [fields.text(f"hook_point_{end}") or "unknown" for end in ("in", "out")]
    site_in, site_out = map(site_name, hooks)
    kind: DictionaryKind = "sae" if site_in == site_out else "transcoder"
    meta = DictionaryMeta(
        kind, "topk" if activation == "topk" else "jumprelu", d, d, d_sae, k, site_in, site_out,
        {"model_name": fields.text("model_name") or None, "architecture": activation},
    )  # fmt: skip
    return StoredDictionary(meta, **of_one_dtype(weights), files=files or {})


def _scales(fields: Fields, d: int, norms: dict[str, float]) -> tuple[float, float]:
    """Factors that bring inputs and outputs to an average norm of sqrt(d), which training saw."""
    mode = fields.text("norm_activation", "dataset-wise")
    if mode == "inference":
        return 1.0, 1.0
    if mode != "dataset-wise":
        raise MechstudyError(
            f"norm_activation: {mode!r} cannot be folded into the weights", where=str(fields.where),
            facts={"reason": "every row or batch is scaled by its own norm"},
            fix="a dictionary with norm_activation: dataset-wise",
        )  # fmt: skip
    for end in ("in", "out"):
        if not (end in norms and 0 < norms[end] < math.inf):
            raise MechstudyError(
                f"dataset_average_activation_norm of the {end}put is missing", where=str(fields.where),
                facts={"found": str(norms.get(end, "nothing"))}, fix="the file as it was published",
            )  # fmt: skip
    return math.sqrt(d) / norms["in"], math.sqrt(d) / norms["out"]


def _refuse(fields: Fields) -> None:
    if fields.flag("use_glu_encoder", False):
        raise MechstudyError(
            "use_glu_encoder: a gate for every feature cannot be represented", where=str(fields.where),
            fix="a dictionary without it",
        )  # fmt: skip


def _not_negative(fields: Fields, name: str) -> float:
    value = fields.content.get(name)
    return 0.0 if value in (None, 0, 0.0) else fields.number(name)


def _unit_rows(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same dictionary with decoder rows of length one; a feature that writes nothing keeps its zero row."""
    norms = torch.linalg.vector_norm(W_dec, dim=1)
    norms = norms.where(norms > 0, torch.ones_like(norms))
    return W_enc * norms, b_enc * norms, W_dec / norms[:, None]


def _wide(tensor: Tensor) -> Tensor:
    """In float32 where it was stored in half precision: products with scales would round again."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
