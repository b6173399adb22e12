"""Dictionaries that read the MLP's norm before its weight, made to read `mlp_in` of the model they are used on.

TransformerLens' ``ln2.hook_normalized`` is the normed residual stream before the norm's weight w (and bias b).
Gemma Scope's transcoders and others were trained there. With mlp_in = normalised * w + b,

    normalised @ W_enc + b_enc = mlp_in @ (W_enc / w) + b_enc - (b / w) @ W_enc
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.clt_layer import CltLayer
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.hooks import is_before_weight, layer_of
from mechstudy.dictionaries.hookpoints import refuse_other_tensor
from mechstudy.dictionaries.lazy import LazyDictionary
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.models.language_model import LanguageModel


def all_fitted(model: LanguageModel, dictionaries: Mapping[int, Basis]) -> Mapping[int, Basis]:
    """Each of some dictionaries as `fitted`; the same mapping where none of them needs it.

    Raises:
        MechstudyError: they are no dictionaries by layer.
    """
    require_by_layer(dictionaries)
    if wrong := [one for one in dictionaries.values() if not isinstance(one, Dictionary | Neurons)]:
        raise _not_by_layer(wrong[0])
    if not any(is_before_weight(one.cfg.site_in) for one in dictionaries.values()):
        return dictionaries
    return {layer: one if isinstance(one, Neurons) else fitted(model, one) for layer, one in dictionaries.items()}


def require_by_layer(dictionaries: object) -> None:
    """Refuses what is no mapping from layers, such as the path of a set.

    Raises:
        MechstudyError: it is something else.
    """
    if not isinstance(dictionaries, Mapping):
        raise _not_by_layer(dictionaries)


def _not_by_layer(found: object) -> MechstudyError:
    return MechstudyError(
        f"{reprlib.repr(found)} is not a set of dictionaries by layer",
        fix="mechstudy.load_dictionaries(...), of a folder, a file, a run or hf:owner/name",
    )


def fitted(model: LanguageModel, dictionary: Dictionary) -> Dictionary:
    """A dictionary of ``ln2.hook_normalized`` as one that reads `mlp_in`; another as it is.

    Raises:
        MechstudyError: the model has no such layer or another width, or its norm's weight is 0 somewhere; or the
            dictionary is of another tensor (see `hookpoints`).
    """
    refuse_other_tensor(model, dictionary)
    if not is_before_weight(dictionary.cfg.site_in):
        return dictionary
    layer = layer_of(dictionary.cfg.site_in)
    if layer >= model.n_layers or dictionary.cfg.d_in != model.d_model:
        raise MechstudyError(
            f"the dictionary reads layer {layer} of a model {dictionary.cfg.d_in} wide",
            facts={"model": f"{model.name}: {model.n_layers} layers, {model.d_model} wide"},
            fix="dictionaries of this model",
        )
    norm = model.linear_norm(model.blocks[layer].norm_mlp, torch.zeros(1, model.d_model, device=model.device))
    weight_D = norm.weight_D.detach().double()
    if not bool(weight_D.all()):
        raise MechstudyError(
            f"layer {layer}: the norm's weight is 0 somewhere, so mlp_in does not hold what the dictionary reads",
            facts={"model": model.name},
            fix="a dictionary of mlp_in",
        )
    cfg = replace(dictionary.cfg, site_in=f"mlp_in.{layer}")
    offset_D = None if norm.bias_D is None else norm.bias_D.detach().double() / weight_D
    tensors = _moved(dictionary, 1 / weight_D, offset_D)
    if isinstance(dictionary, LazyDictionary):
        return dictionary.reading(cfg, 1 / weight_D, tensors)
    W_enc = dictionary.W_enc.double() / weight_D.to(dictionary.W_enc.device)[:, None]
    like = dictionary.W_enc
    moved = {name: tensor.to(like) for name, tensor in tensors.items() if tensor is not None}
    if isinstance(dictionary, CltLayer):
        assert dictionary.threshold is not None
        return CltLayer(
            cfg, W_enc=W_enc.to(like), threshold=dictionary.threshold, W_writes=dictionary.W_writes, **moved
        )
    return Dictionary(cfg, W_enc=W_enc.to(like), W_dec=dictionary.W_dec, threshold=dictionary.threshold, **moved)


def _moved(
    dictionary: Dictionary, scale_D: Float[Tensor, " d"], offset_D: Float[Tensor, " d"] | None
) -> dict[str, Tensor | None]:
    """b_enc, b_dec and W_skip for inputs x of which the dictionary read x * scale - offset, in float64."""
    device = dictionary.b_enc.device
    b_enc, b_dec = dictionary.b_enc.double(), dictionary.b_dec.double()
    skip = None if dictionary.W_skip is None else dictionary.W_skip.double()
    if offset_D is not None:
        offset_D = offset_D.to(device)
        b_enc = b_enc - offset_D @ dictionary.W_enc.double()
        b_dec = b_dec if skip is None else b_dec - skip @ offset_D
    return {"b_enc": b_enc, "b_dec": b_dec, "W_skip": None if skip is None else skip * scale_D.to(device)}
