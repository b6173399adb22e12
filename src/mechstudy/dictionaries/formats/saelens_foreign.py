"""Converts what SAELens itself saved, final models and training checkpoints, to dictionaries that compute the same.

A subtracted b_dec (`apply_b_dec_to_input`), decoder norms (`rescale_acts_by_decoder_norm`) and gates are folded into
the weights. A checkpoint's scaling or whitening of its inputs (`activation_scaler.json`) is folded in as SAELens does
at the end of training, so that the dictionary reads raw activations. batchtopk's running threshold becomes every
feature's threshold.

AbsTopK keeps the k features of largest magnitude, with their signs. That is a TopK of twice as many features: feature i
and, at F + i, its opposite, of which at most one is positive.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.fields import Fields, read_json, shown
from mechstudy.dictionaries.formats.hooks import named_module, site_name, with_head
from mechstudy.dictionaries.formats.tensors import (
    gated_as_jumprelu,
    of_one_dtype,
    read_safetensors,
    require,
    without_centring,
)
from mechstudy.dictionaries.stored import DictionaryKind, DictionaryMeta, FileTensor, StoredDictionary, expected_shapes

WEIGHTS = "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

ARCHITECTURES: dict[str, tuple[DictionaryKind, str]] = {
    "standard": ("sae", "relu"),
    "gated": ("sae", "gated"),
    "topk": ("sae", "topk"),
    "abstopk": ("sae", "abstopk"),
    "jumprelu": ("sae", "jumprelu"),
    "batchtopk": ("sae", "batchtopk"),
    "matryoshka_batchtopk": ("sae", "batchtopk"),
    "transcoder": ("transcoder", "relu"),
    "skip_transcoder": ("skip_transcoder", "relu"),
    "jumprelu_transcoder": ("transcoder", "jumprelu"),
    "jumprelu_skip_transcoder": ("skip_transcoder", "jumprelu"),
}
REFUSED = {
    "temporal": "a token's features depend on the tokens before it, and a dictionary here sees one row at a time",
    "matching_pursuit": "features are chosen one after another, each from what the others left of the row",
}
_BY_ROW = {
    "layer_norm": "every row is divided by its own standard deviation, and the reconstruction multiplied by it",
    "constant_norm_rescale": "every row is divided by its own norm, and the reconstruction multiplied by it",
}


def convert(fields: Fields, folder: Path, *, mapped: bool = False) -> StoredDictionary:
    """The dictionary of a cfg.json that SAELens wrote, and the weights beside it; see `saelens.read`.

    Raises:
        MechstudyError: a tensor is missing or damaged, a field has another type than SAELens', or the architecture
            or its normalisation has no single formula for all rows; the reason is given.
    """
    architecture, activation = _architecture(fields)
    kind = ARCHITECTURES[architecture][0]
    _refuse_normalisation(fields, folder)
    d_in, d_sae = fields.whole("d_in"), fields.whole("d_sae")
    d_out = d_in if kind == "sae" else fields.whole("d_out", d_in)
    k = _k(fields, activation, d_sae)
    t = _tensors(folder, kind, activation, d_in, d_out, d_sae, mapped=mapped)
    as_stored = dict(t)
    if activation in ("topk", "abstopk", "batchtopk"):
        rescales = fields.flag("rescale_acts_by_decoder_norm", activation == "batchtopk")
    else:
        rescales = False
    centred = kind == "sae" and fields.flag("apply_b_dec_to_input", True)
    rescales = _fold_inputs(t, folder, centred=centred, rescales=rescales)
    if activation == "gated":
        t["W_enc"], t["b_enc"], t["threshold"] = gated_as_jumprelu(
            t["W_enc"], t.pop("b_gate"), t.pop("r_mag"), t.pop("b_mag")
        )
    if rescales:
        _fold_norms(t)
    if centred:
        t["b_enc"] = without_centring(t["b_enc"], t["b_dec"], t["W_enc"])
    if activation == "relu":
        t["threshold"] = torch.zeros_like(t["b_enc"])
    if activation == "batchtopk":
        t["threshold"] = torch.full_like(t["b_enc"], t.pop("topk_threshold").item())
    if activation == "abstopk":
        t |= {"W_enc": torch.cat([t["W_enc"], -t["W_enc"]], 1), "b_enc": torch.cat([t["b_enc"], -t["b_enc"]])}
        t["W_dec"] = torch.cat([t["W_dec"], -t["W_dec"]])
    metadata = fields.table("metadata")
    model = metadata.text("model_name") or fields.text("model_name")
    site_in, site_out, head, module = _sites(fields, metadata, model)
    more: dict[str, Any] = {"model_name": model or None, "architecture": architecture, **module}
    if head is not None:
        more["hook_head_index"] = head  # a row is one head's slice, which has no heads to put side by side
    elif "hook_z" in (fields.text("reshape_activations"), site_in.rpartition(".")[2]):
        more["reshape_activations"] = "hook_z"
    exact = activation in ("topk", "abstopk")
    meta = DictionaryMeta(
        kind=kind,
        activation="topk" if exact else "jumprelu",
        d_in=d_in,
        d_out=d_out,
        d_sae=len(t["b_enc"]),
        k=k,
        site_in=site_in,
        site_out=site_out,
        metadata=more,
    )
    path = folder / WEIGHTS
    files = {name: FileTensor(path, name) for name in ("W_enc", "W_dec") if t[name] is as_stored[name]}
    return StoredDictionary(meta, **of_one_dtype({name: t[name] for name in expected_shapes(meta)}), files=files)


def _architecture(fields: Fields) -> tuple[str, str]:
    """SAELens' name and the activation; before version 6 a standard one could hold `activation_fn: topk`."""
    name = fields.text("architecture", "standard")
    where = str(fields.where)
    if name in REFUSED:
        raise MechstudyError(
            f"architecture {name!r} cannot be used here",
            where=where,
            facts={"reason": REFUSED[name], "known": ", ".join(ARCHITECTURES)},
            fix="SAELens for this one",
        )
    if name not in ARCHITECTURES:
        raise MechstudyError(
            f"architecture {name!r} cannot be used here: it is not known",
            where=where,
            facts={"known": ", ".join(ARCHITECTURES)},
            fix="save it as one of these",
        )
    activation = ARCHITECTURES[name][1]
    if activation != "relu":
        return name, activation
    old = fields.text("activation_fn_str") or fields.text("activation_fn", "relu")
    if old not in ("relu", "topk"):
        raise MechstudyError(
            f"activation_fn {old!r} cannot be represented here", where=where, facts={"known": "relu, topk"},
            fix="a dictionary with one of these",
        )  # fmt: skip
    return name, old


def _refuse_normalisation(fields: Fields, folder: Path) -> None:
    mode = fields.content.get("normalize_activations")
    if mode in (None, False, True, "none", "expected_average_only_in"):  # folded already, or scaled as `SCALER` says
        return
    if mode == "covariance_whitening" and (folder / WHITENING).exists():
        return
    reason = _BY_ROW.get(str(mode))
    if mode == "covariance_whitening":
        reason = f"the inputs are whitened, and {WHITENING} is not there to fold that into the weights"
    raise MechstudyError(
        f"normalize_activations: {shown(mode)} cannot be folded into the weights",
        where=str(fields.where),
        facts={"reason": reason or "it is not known"},
        fix=f"copy {WHITENING} beside it" if mode == "covariance_whitening" else "SAELens for this one",
    )


def _k(fields: Fields, activation: str, d_sae: int) -> int | None:
    if activation == "batchtopk":
        mean = fields.number("k", 100.0)  # SAELens' own default
        return round(mean) or None
    if activation not in ("topk", "abstopk"):
        return None
    k = fields.whole("k") if "k" in fields else fields.table("activation_fn_kwargs").whole("k", 0, least=0)
    if not 1 <= k <= d_sae:
        raise MechstudyError(
            f"k must be between 1 and d_sae, not {k}", where=str(fields.where), facts={"d_sae": str(d_sae)},
            fix="the k it was trained with",
        )  # fmt: skip
    return k


def _tensors(
    folder: Path, kind: DictionaryKind, activation: str, d_in: int, d_out: int, d_sae: int, *, mapped: bool
) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    t = read_safetensors(path)
    if "log_threshold" in t and "threshold" not in t:  # of older JumpReLU checkpoints
        t["threshold"] = t["log_threshold"].exp()
    one: tuple[int, ...] = (d_sae,)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    shapes |= {"b_gate": one, "r_mag": one, "b_mag": one} if activation == "gated" else {"b_enc": one}
    if kind == "skip_transcoder":
        shapes["W_skip"] = (d_out, d_in)
    if activation == "jumprelu":
        shapes["threshold"] = one
    if activation == "batchtopk":
        shapes["topk_threshold"] = ()
    require(t, shapes, path, mapped=mapped)
    scaling = t.get("scaling_factor")
    if scaling is not None and not bool((scaling == 1).all()):
        raise MechstudyError(
            "the features were scaled after training (scaling_factor), which SAELens 6 does not load either",
            where=str(path),
            fix="multiply W_dec by it, feature by feature, and remove it",
        )
    return {name: t[name] for name in shapes}


def _fold_inputs(t: dict[str, Tensor], folder: Path, *, centred: bool, rescales: bool) -> bool:
    """A checkpoint's scaling or whitening of its inputs, in place. After it the dictionary reads raw activations.

    Returns whether the decoder's norms are still to be folded.
    """
    if not (folder / SCALER).exists():
        return rescales
    fields = Fields(read_json(folder / SCALER), folder / SCALER)
    if "scaling_factor" in fields:
        scale = fields.number("scaling_factor")
        t["W_enc"], t["W_dec"], t["b_dec"] = t["W_enc"] * scale, t["W_dec"] / scale, t["b_dec"] / scale
        if rescales and "topk_threshold" in t:  # in units of a decoder norm, which has just shrunk
            t["topk_threshold"] = t["topk_threshold"] / scale
    if not fields.flag("has_whitening", False):
        return rescales
    d_in = len(t["W_enc"])
    white = read_safetensors(folder / WHITENING)
    require(white, {"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)}, folder / WHITENING)
    mean, matrix, inverse = (white[name].double() for name in ("mean", "matrix", "inverse_matrix"))
    if rescales:  # unwhitening changes the decoder's norms, which decide the k largest
        _fold_norms(t)
    dtype = t["W_enc"].dtype
    t["W_enc"] = (matrix @ t["W_enc"].double()).to(dtype)
    if not centred:
        shift = mean @ t["W_enc"].double()
        if "b_gate" in t:
            t["b_gate"] = (t["b_gate"].double() - shift).to(dtype)
            t["b_mag"] = (t["b_mag"].double() - shift * t["r_mag"].double().exp()).to(dtype)
        else:
            t["b_enc"] = (t["b_enc"].double() - shift).to(dtype)
    t["W_dec"] = (t["W_dec"].double() @ inverse).to(dtype)
    t["b_dec"] = (t["b_dec"].double() @ inverse + mean).to(dtype)
    return False


def _fold_norms(t: dict[str, Tensor]) -> None:
    """Features in units of their decoder rows' length, in place."""
    norms = torch.linalg.vector_norm(t["W_dec"], dim=1).clamp_min(1e-8)
    t |= {"W_enc": t["W_enc"] * norms, "b_enc": t["b_enc"] * norms, "W_dec": t["W_dec"] / norms[:, None]}


def _sites(fields: Fields, metadata: Fields, model: str) -> tuple[str, str, int | None, dict[str, str]]:
    """Sites, the attention head whose slice of the hook is a row (None if rows hold all heads), and `named_module`."""
    hook = metadata.text("hook_name") or fields.text("hook_name") or fields.text("hook_point") or "unknown"
    hook_out = metadata.text("hook_name_out") or fields.text("hook_name_out") or hook
    head, head_out = (_head(fields, metadata, end) for end in ("", "_out"))
    if hook_out == hook:
        head_out = head
    site_in, site_out = with_head(site_name(hook, model), head), with_head(site_name(hook_out, model), head_out)
    return site_in, site_out, head, named_module(hook_out)


def _head(fields: Fields, metadata: Fields, end: str) -> int | None:
    """The head's index. Before version 6 it stood outside metadata, at first as hook_point_head_index."""
    for place, name in (
        (metadata, f"hook_head_index{end}"),
        (fields, f"hook_head_index{end}"),
        (fields, f"hook_point_head_index{end}"),
    ):
        if name in place:
            return place.whole(name, least=0)
    return None
