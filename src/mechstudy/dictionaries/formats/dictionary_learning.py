"""saprmarks' dictionary_learning: a folder with ``config.json`` and ``ae.pt``. Read only.

``ae.pt`` is a pickle. It is read with torch's weights-only loader, which builds tensors and refuses everything else.
Every class is converted to a TopK or JumpReLU dictionary that computes the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.fields import Fields, read_json
from mechstudy.dictionaries.formats.hooks import site_name
from mechstudy.dictionaries.formats.pickles import read_state_dict
from mechstudy.dictionaries.formats.tensors import (
    gated_as_jumprelu,
    of_one_dtype,
    require,
    shape_of,
    without_centring,
)
from mechstudy.dictionaries.stored import DictionaryMeta, StoredDictionary

CFG, WEIGHTS = "config.json", "ae.pt"


def read(folder: Path, *, mapped: bool = False) -> StoredDictionary:
    """Read a folder that dictionary_learning's training wrote, or an older one's ``ae.pt`` alone.

    Matrices are read whole, ``mapped`` or not: nearly every class is centred.

    Raises:
        MechstudyError: a file or tensor is missing or damaged, the pickle holds more than tensors, or the class is
            unknown: without config.json, if the tensors fit several classes or none.
    """
    if (folder / CFG).is_file():
        trainer = Fields(read_json(folder / CFG), folder / CFG).table("trainer")
        if (name := trainer.text("dict_class")) not in CLASSES:
            raise MechstudyError(
                f"dict_class {name!r} is not known",
                where=str(folder / CFG),
                facts={"known": ", ".join(CLASSES)},
                fix="a dictionary of one of these classes",
            )
        tensors = _load(folder / WEIGHTS, "dictionary_learning's")
    else:
        trainer = Fields({}, folder / CFG)
        tensors = _load(folder / WEIGHTS, f"dictionary_learning's, without {CFG}")
        name = _class_of(tensors, folder)
    weights = CLASSES[name](tensors, folder / WEIGHTS)
    d_in, d_sae = weights["W_enc"].shape
    topk = name == "AutoEncoderTopK"
    stored = tensors.get("k")
    k = trainer.whole("k") if "k" in trainer else None if stored is None else int(stored)
    if topk and (k is None or (stored is not None and int(stored) != k)):
        raise MechstudyError(
            "config.json and ae.pt do not say one k", where=str(folder),
            facts={CFG: str(trainer.content.get("k")), WEIGHTS: str(None if stored is None else int(stored))},
            fix="the config and the weights of one dictionary",
        )  # fmt: skip
    layer = trainer.whole("layer", least=0) if "layer" in trainer else None
    site = site_name(trainer.text("submodule_name")) or ("unknown" if layer is None else f"layer {layer}")
    meta = DictionaryMeta(
        kind="sae",
        activation="topk" if topk else "jumprelu",
        d_in=d_in,
        d_out=d_in,
        d_sae=d_sae,
        k=k,
        site_in=site,
        site_out=site,
        metadata={"model_name": trainer.text("lm_name") or None, "architecture": name},
    )
    named = of_one_dtype({n: tensor for n, tensor in weights.items() if tensor is not None})
    return StoredDictionary(meta, **named, files={})


def _load(path: Path, what: str) -> dict[str, Tensor]:
    tensors = read_state_dict(path, what)
    if "k" in tensors and (tensors["k"].numel() != 1 or tensors["k"].is_floating_point()):
        raise MechstudyError(
            "tensor k is not an integer", where=str(path), fix="save its state_dict() again with torch.save"
        )
    return tensors


def _class_of(tensors: dict[str, Tensor], folder: Path) -> str:
    """The one class whose state dict has these tensors."""
    names = frozenset(tensors)
    fits = [name for name, kinds in _TENSORS.items() if names in kinds]
    if len(fits) != 1:
        raise MechstudyError(
            f"a dictionary_learning dictionary without its {CFG}, and ae.pt does not tell its class", where=str(folder),
            facts={"missing": "dict_class" + ("" if "k" in names or fits else " (and k)"),
                   "tensors": ", ".join(sorted(names)) or "none",
                   "fits": ", ".join(fits) or "no known class"},
            fix=f'{CFG} of its training, or one with {{"trainer": {{"dict_class": "...", "k": ..., "layer": ...}}}}',
        )  # fmt: skip
    return fits[0]


def _linear(t: dict[str, Tensor], where: Path, bias: str, decoder_bias: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(W_enc, b_enc, W_dec, b_dec) of an encoder and a decoder that are torch's linear layers."""
    d_sae, d_in = shape_of(t, "encoder.weight", where)
    shapes = {"encoder.weight": (d_sae, d_in), "decoder.weight": (d_in, d_sae), bias: (d_sae,), decoder_bias: (d_in,)}
    require(t, shapes, where)
    return t["encoder.weight"].T.contiguous(), t[bias], t["decoder.weight"].T.contiguous(), t[decoder_bias]


def _standard(t: dict[str, Tensor], where: Path) -> dict[str, Any]:
    """AutoEncoder; its loader normalises decoder rows, so they are normalised here."""
    W_enc, b_enc, W_dec, b_dec = _linear(t, where, "encoder.bias", "bias")
    norms = torch.linalg.vector_norm(W_dec, dim=1)
    norms = norms.where(norms > 0, torch.ones_like(norms))  # a feature that writes nothing keeps its zero row
    b_enc = without_centring(b_enc, b_dec, W_enc) * norms
    return _weights(W_enc * norms, b_enc, W_dec / norms[:, None], b_dec, torch.zeros_like(b_enc))


def _new_standard(t: dict[str, Tensor], where: Path) -> dict[str, Any]:
    W_enc, b_enc, W_dec, b_dec = _linear(t, where, "encoder.bias", "decoder.bias")
    return _weights(W_enc, b_enc, W_dec, b_dec, torch.zeros_like(b_enc))


def _gated(t: dict[str, Tensor], where: Path) -> dict[str, Any]:
    W_enc, b_gate, W_dec, b_dec = _linear(t, where, "gate_bias", "decoder_bias")
    require(t, {"r_mag": b_gate.shape, "mag_bias": b_gate.shape}, where)
    W, b_enc, threshold = gated_as_jumprelu(W_enc, b_gate, t["r_mag"], t["mag_bias"])
    shifted = without_centring(b_enc, b_dec, W)
    return _weights(W, shifted, W_dec, b_dec, threshold)


def _topk(t: dict[str, Tensor], where: Path) -> dict[str, Any]:
    W_enc, b_enc, W_dec, b_dec = _linear(t, where, "encoder.bias", "b_dec")
    return _weights(W_enc, without_centring(b_enc, b_dec, W_enc), W_dec, b_dec, None)


def _batchtopk(t: dict[str, Tensor], where: Path) -> dict[str, Any]:
    W_enc, b_enc, W_dec, b_dec = _linear(t, where, "encoder.bias", "b_dec")
    return _thresholded(t, where, W_enc, without_centring(b_enc, b_dec, W_enc), W_dec, b_dec)


def _matryoshka(t: dict[str, Tensor], where: Path) -> dict[str, Any]:
    d_in, d_sae = shape_of(t, "W_enc", where)
    require(t, {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}, where)
    b_enc = without_centring(t["b_enc"], t["b_dec"], t["W_enc"])
    return _thresholded(t, where, t["W_enc"], b_enc, t["W_dec"], t["b_dec"])


def _jumprelu(t: dict[str, Tensor], where: Path) -> dict[str, Any]:
    d_in, d_sae = shape_of(t, "W_enc", where)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    require(t, shapes | {"threshold": (d_sae,)}, where)
    return _weights(t["W_enc"], t["b_enc"], t["W_dec"], t["b_dec"], t["threshold"])


def _thresholded(
    t: dict[str, Tensor], where: Path, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor
) -> dict[str, Any]:
    """One threshold for all features; -1 means "not calibrated" and acts like zero."""
    if "threshold" in t:
        require(t, {"threshold": ()}, where)
    threshold = torch.full_like(b_enc, max(0.0, float(t.get("threshold", 0.0))))
    return _weights(W_enc, b_enc, W_dec, b_dec, threshold)


def _weights(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, threshold: Tensor | None) -> dict[str, Any]:
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}


_LINEAR = frozenset({"encoder.weight", "encoder.bias", "decoder.weight"})
_TOPK = _LINEAR | {"b_dec", "k"}
_OWN = frozenset({"W_enc", "b_enc", "W_dec", "b_dec", "threshold"})
# State dicts of each class, by the names of their tensors. A TopK of later versions has BatchTopK's.
_TENSORS: dict[str, tuple[frozenset[str], ...]] = {
    "AutoEncoder": (_LINEAR | {"bias"},),
    "AutoEncoderNew": (_LINEAR | {"decoder.bias"},),
    "GatedAutoEncoder": (frozenset({"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias",
                                    "mag_bias"}),),
    "AutoEncoderTopK": (_TOPK, _TOPK | {"threshold"}),
    "BatchTopKSAE": (_TOPK | {"threshold"},),
    "JumpReluAutoEncoder": (_OWN,),
    "MatryoshkaBatchTopKSAE": (_OWN | {"k", "group_sizes"},),
}  # fmt: skip
CLASSES = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _new_standard,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}
