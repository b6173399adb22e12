"""Dictionaries on disk, in SAELens' format: cfg.json and sae_weights.safetensors.

| ours                        | architecture in cfg.json      | SAELens 6 computes the same? |
|-----------------------------|-------------------------------|------------------------------|
| sae, topk                   | topk                          | yes                          |
| sae, jumprelu (batchtopk)   | jumprelu                      | yes                          |
| transcoder, jumprelu        | jumprelu_transcoder           | yes                          |
| skip_transcoder, jumprelu   | jumprelu_skip_transcoder      | yes                          |
| transcoder, topk            | transcoder                    | no: loads, but has no TopK   |
| skip_transcoder, topk       | skip_transcoder               | no: loads, but has no TopK   |

ReLU, Gated and Matryoshka dictionaries are JumpReLU ones at inference, and are written as such.
What is exact stands under `metadata.mechstudy` and is what `read` goes by; files without it are SAELens' own.
SAELens knows no sinks (`max_input_norm`): on such rows it returns features where we return none.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import Kind
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta, expected_shapes
from mechstudy.dictionaries.formats.tensors import (
    gated_as_jumprelu,
    read_json,
    read_safetensors,
    require,
    without_centring,
)

CFG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
FORMAT = 1  # of metadata.mechstudy
SAELENS_VERSION = "6.0.0"  # of the format; without it SAELens 6 takes the file for an old one and drops metadata

_ARCHITECTURES: dict[str, tuple[Kind, str]] = {
    "topk": ("sae", "topk"),
    "jumprelu": ("sae", "jumprelu"),
    "standard": ("sae", "relu"),
    "gated": ("sae", "gated"),
    "transcoder": ("transcoder", "relu"),
    "skip_transcoder": ("skip_transcoder", "relu"),
    "jumprelu_transcoder": ("transcoder", "jumprelu"),
    "jumprelu_skip_transcoder": ("skip_transcoder", "jumprelu"),
}
_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_in": "mlp.hook_in",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
}
_IDENTITY_NORMALISATIONS = (None, False, "none", "expected_average_only_in")  # at inference, in SAELens too


def architecture_name(cfg: DictionaryMeta) -> str:
    """The SAELens name written for a dictionary; see the table above."""
    if cfg.kind == "sae":
        return cfg.activation
    return f"jumprelu_{cfg.kind}" if cfg.activation == "jumprelu" else cfg.kind


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write both files. The same dictionary gives the same bytes."""
    from safetensors.torch import save_file

    cfg = dictionary.cfg
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "architecture": architecture_name(cfg),
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if cfg.kind != "sae":
        content["d_out"] = cfg.d_out
    if cfg.activation == "topk":
        content |= {"k": cfg.k, "rescale_acts_by_decoder_norm": False}
    content["metadata"] = {
        "sae_lens_version": SAELENS_VERSION,
        "model_name": cfg.metadata.get("model_name"),
        "hook_name": hook_name(cfg.site_in),
        "hook_head_index": None,
        "mechstudy": {
            "format": FORMAT,
            "kind": cfg.kind,
            "activation": cfg.activation,
            "k": cfg.k,
            "site_in": cfg.site_in,
            "site_out": cfg.site_out,
            "metadata": cfg.metadata,
        },
    }
    if cfg.kind != "sae":
        content["metadata"]["hook_name_out"] = hook_name(cfg.site_out)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in dictionary.named_parameters()}
    try:
        save_file(tensors, folder / WEIGHTS)
        (folder / CFG).write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
    except OSError as error:
        raise MechstudyError(
            "the dictionary cannot be written", where=str(folder), facts={"reason": str(error)}
        ) from error


def read(folder: Path) -> Dictionary:
    """Read a folder of ours, or SAELens' own standard, gated, topk, jumprelu or transcoder.

    A subtracted b_dec (`apply_b_dec_to_input`) and decoder norms (`rescale_acts_by_decoder_norm`) are folded in.
    """
    folder = Path(folder)
    content = _read_cfg(folder / CFG)
    tensors = read_safetensors(folder / WEIGHTS)
    metadata = content.get("metadata") or {}
    ours = metadata.get("mechstudy")
    meta = _our_meta(content, ours, tensors, folder) if ours else _foreign_meta(content, metadata, tensors, folder)
    if meta.activation == "jumprelu" and not ours and _activation(content) == "relu":
        tensors["threshold"] = torch.zeros_like(tensors["b_enc"])
    if not ours and _activation(content) == "gated":
        _degate(tensors, meta, folder / WEIGHTS)
    shapes = expected_shapes(meta)
    require(tensors, shapes, folder / WEIGHTS)
    chosen = {name: tensors[name] for name in shapes}
    if not ours:
        _fold(chosen, content, meta)
    return Dictionary(meta, **chosen)


def hook_name(site: str) -> str:
    """TransformerLens' name of a site: "mlp_out.3" -> "blocks.3.hook_mlp_out"; other text stays as it is."""
    kind, _, layer = str(site).partition(".")
    return f"blocks.{layer}.{_HOOKS[kind]}" if kind in _HOOKS and layer.isdigit() else str(site)


def site_name(hook: str) -> str:
    """Inverse of `hook_name`; other text stays as it is."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    kinds = {name: kind for kind, name in _HOOKS.items()} | {"mlp.hook_out": "mlp_out"}
    if match is None or match[2] not in kinds:
        return hook
    return f"{kinds[match[2]]}.{match[1]}"


def _read_cfg(path: Path) -> dict[str, Any]:
    content = read_json(path)
    for name in ("d_in", "d_sae"):
        if not isinstance(content.get(name), int) or content[name] < 1:
            raise MechstudyError(f"{name} must be a positive integer", where=str(path))
    return content


def _our_meta(
    content: dict[str, Any], ours: dict[str, Any], tensors: dict[str, Tensor], folder: Path
) -> DictionaryMeta:
    where = str(folder / CFG)
    if ours.get("format") != FORMAT:
        raise MechstudyError(
            f"metadata.mechstudy has format {ours.get('format')}, this version reads {FORMAT}",
            where=where,
            fix="use the version of mechstudy that wrote it",
        )
    try:
        meta = DictionaryMeta(
            kind=ours["kind"],
            activation=ours["activation"],
            d_in=content["d_in"],
            d_out=content.get("d_out", content["d_in"]),
            d_sae=content["d_sae"],
            k=ours["k"],
            site_in=ours["site_in"],
            site_out=ours["site_out"],
            metadata=dict(ours.get("metadata") or {}),
        )
    except KeyError as error:
        raise MechstudyError(f"metadata.mechstudy lacks {error}", where=where) from error
    if meta.kind not in get_args(Kind) or meta.activation not in ("topk", "jumprelu"):
        raise MechstudyError(f"unknown dictionary: {meta.kind} with {meta.activation}", where=where)
    if architecture_name(meta) != content.get("architecture"):
        raise MechstudyError(
            "architecture and metadata.mechstudy contradict each other",
            where=where,
            facts={"architecture": str(content.get("architecture")), "expected": architecture_name(meta)},
        )
    return meta


def _foreign_meta(
    content: dict[str, Any], metadata: dict[str, Any], tensors: dict[str, Tensor], folder: Path
) -> DictionaryMeta:
    architecture = content.get("architecture", "standard")
    where = str(folder / CFG)
    if architecture not in _ARCHITECTURES:
        raise MechstudyError(
            f"architecture {architecture!r} cannot be used here",
            where=where,
            facts={"known": ", ".join(sorted(_ARCHITECTURES))},
        )
    if content.get("normalize_activations") not in _IDENTITY_NORMALISATIONS:
        raise MechstudyError(
            f"normalize_activations: {content['normalize_activations']!r} depends on each row and cannot be folded",
            where=where,
        )
    if content.get("reshape_activations", "none") != "none":
        raise MechstudyError("hook_z dictionaries have no site here", where=where)
    kind = _ARCHITECTURES[architecture][0]
    activation = _activation(content)
    hook = metadata.get("hook_name") or content.get("hook_name") or content.get("hook_point") or "unknown"
    hook_out = metadata.get("hook_name_out") or content.get("hook_name_out") or hook
    k = content.get("k") or (content.get("activation_fn_kwargs") or {}).get("k")
    if activation == "topk" and not (isinstance(k, int) and 1 <= k <= content["d_sae"]):
        raise MechstudyError(f"k must be between 1 and d_sae, not {k}", where=where)
    model_name = metadata.get("model_name") or content.get("model_name")
    return DictionaryMeta(
        kind=kind,
        activation="topk" if activation == "topk" else "jumprelu",
        d_in=content["d_in"],
        d_out=content["d_in"] if kind == "sae" else content.get("d_out", content["d_in"]),
        d_sae=content["d_sae"],
        k=k if activation == "topk" else None,
        site_in=site_name(hook),
        site_out=site_name(hook_out),
        metadata={"model_name": model_name, "architecture": architecture},
    )


def _activation(content: dict[str, Any]) -> str:
    """ "topk", "jumprelu", "gated" or "relu"; before version 6 SAELens kept topk in `activation_fn`."""
    activation = _ARCHITECTURES[content.get("architecture", "standard")][1]
    old = content.get("activation_fn_str") or content.get("activation_fn")
    return "topk" if activation == "relu" and old == "topk" else activation


def _degate(tensors: dict[str, Tensor], meta: DictionaryMeta, where: Path) -> None:
    """A gated encoder becomes the JumpReLU that it is, in place."""
    F = (meta.d_sae,)
    require(tensors, {"W_enc": (meta.d_in, meta.d_sae), "b_gate": F, "r_mag": F, "b_mag": F}, where)
    tensors["W_enc"], tensors["b_enc"], tensors["threshold"] = gated_as_jumprelu(
        tensors["W_enc"], tensors["b_gate"], tensors["r_mag"], tensors["b_mag"]
    )


def _fold(tensors: dict[str, Tensor], content: dict[str, Any], meta: DictionaryMeta) -> None:
    """Fold SAELens' subtraction of b_dec from the input, and its decoder norms, into the weights, in place."""
    if meta.kind == "sae" and content.get("apply_b_dec_to_input", True):
        tensors["b_enc"] = without_centring(tensors["b_enc"], tensors["b_dec"], tensors["W_enc"])
    if meta.activation == "topk" and content.get("rescale_acts_by_decoder_norm", False):
        norms = torch.linalg.vector_norm(tensors["W_dec"], dim=1)
        tensors["W_enc"] = tensors["W_enc"] * norms
        tensors["b_enc"] = tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
