"""circuit-tracer's transcoder sets, one file per layer.

A transcoder set is ``layer_N.safetensors`` for every layer from 0 on, and one ``config.yaml``. A file holds
W_enc [F, d], W_dec [F, d], b_enc [F], b_dec [d], and optionally ``activation_function.threshold`` [F] and
W_skip [d, d], used as x @ W_skip.T. Without a threshold the activation is a ReLU, or TopK where the file holds a scalar
``k`` or config.yaml says ``activation: topk`` with ``k``; whatever states one must agree (see `stated`).
circuit-tracer's TopK keeps negative values among the k largest, a `Dictionary` only positive ones: the two agree
wherever k features are positive. Cross-layer transcoders: see `cross_layer`. Sets whose config.yaml lists their files:
see `sets`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.fields import Fields
from mechstudy.dictionaries.formats.folders import replacing
from mechstudy.dictionaries.formats.hooks import config_hook, hook_name, named_module, site_name, written_hook
from mechstudy.dictionaries.formats.stated import Claim, agreed, claims_of, refuse_layout, without_thresholds
from mechstudy.dictionaries.formats.tensors import (
    header_text,
    of_one_dtype,
    read_safetensors,
    require,
    shape_of,
    transposed,
    whole_tensor,
    write_safetensors,
    write_text,
)
from mechstudy.dictionaries.stored import (
    AnyPath,
    DictionaryKind,
    DictionaryLike,
    DictionaryMeta,
    FileTensor,
    StoredDictionary,
)

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
K = ("k", "activation_function.k")
_HEADER_K = "mechstudy.k"


def read(
    path: AnyPath, *, mapped: bool = False, config: Fields | None = None, layer: int | None = None
) -> StoredDictionary:
    """Read one layer's file.

    Args:
        path: the file.
        mapped: leave the matrices in the file, with values unread and unchecked.
        config: of the set; None takes the config.yaml beside the file, if there is one.
        layer: None takes the last number in the file's name; without one, sites name no layer.

    Raises:
        MechstudyError: it is damaged, or lacks a tensor, or its activation cannot be represented.
    """
    path = Path(path)
    t = read_safetensors(path)
    if config is None:
        config = read_config(path.parent) if (path.parent / CONFIG).exists() else Fields({}, path.parent / CONFIG)
    d_sae, d_in = shape_of(t, "W_enc", path)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_sae, d_in), "W_dec": (d_sae, d_in), "b_enc": (d_sae,)}
    shapes["b_dec"] = (d_in,)
    shapes |= {"W_skip": (d_in, d_in)} if "W_skip" in t else {}
    shapes |= {THRESHOLD: (d_sae,)} if THRESHOLD in t else {}
    require(t, shapes, path, mapped=mapped)
    for name in sorted(t.keys() - {*shapes, *K}):
        what = "number" if t[name].numel() == 1 else f"tensor of shape {list(t[name].shape)}"
        raise MechstudyError(
            f"the file holds a {what}, {name!r}, whose meaning is not known", where=str(path),
            facts={"known": f"{', '.join(K)}, {THRESHOLD}, W_skip"}, fix="the set as circuit-tracer writes it",
        )  # fmt: skip
    refuse_layout(config, "one file a layer", skip="W_skip" in t, path=path)
    k = _k(config, t, d_sae, path)
    if THRESHOLD in t and k is None:
        refuse_negative(t[THRESHOLD], path)
    threshold = t.get(THRESHOLD, torch.zeros_like(t["b_enc"]))
    match = re.search(r"(\d+)(?!.*\d)", path.stem)
    layer = int(match[1]) if layer is None and match else layer
    hooks = (
        config_hook(config.text(f"feature_{end}_hook", default))
        for end, default in (("input", "mlp.hook_in"), ("output", "hook_mlp_out"))
    )
    model = config.text("model_name")
    named = [hook if layer is None else f"blocks.{layer}.{hook}" for hook in hooks]
    site_in, site_out = (site_name(hook, model) for hook in named)
    W_enc = transposed(t["W_enc"], mapped=mapped)
    weights = {"W_enc": W_enc, "b_enc": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
    metadata = ({"model_name": model} if "model_name" in config else {}) | named_module(named[1])
    kind: DictionaryKind = "skip_transcoder" if "W_skip" in t else "transcoder"
    meta = DictionaryMeta(kind, "topk" if k else "jumprelu", d_in, d_in, d_sae, k, site_in, site_out, metadata)
    weights |= {"W_skip": t["W_skip"]} if "W_skip" in t else {}
    weights |= {} if k else {"threshold": threshold}
    files = {"W_enc": FileTensor(path, "W_enc", transposed=True), "W_dec": FileTensor(path, "W_dec")}
    return StoredDictionary(meta, **of_one_dtype(weights), files=files)


def read_set(folder: AnyPath) -> dict[int, StoredDictionary]:
    """Read every layer of a set.

    Raises:
        MechstudyError: there is none, a layer is missing, or a file cannot be read.
    """
    folder = Path(folder)
    paths = {
        int(match[1]): path
        for path in sorted(folder.glob("layer_*.safetensors"))
        if (match := re.fullmatch(r"layer_(\d+)", path.stem))
    }
    _refuse_gaps(paths, folder)
    return {layer: read(paths[layer]) for layer in sorted(paths)}


def read_config(folder: Path) -> Fields:
    """Read config.yaml of a set.

    Raises:
        MechstudyError: it is absent, or not a YAML mapping.
    """
    path = folder / CONFIG
    try:
        content: Any = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError as error:
        raise MechstudyError(f"{CONFIG} is missing", where=str(folder), fix="the folder that holds it") from error
    except (YAMLError, OSError, ValueError, RecursionError) as error:
        raise MechstudyError(
            f"{CONFIG} cannot be read as YAML", where=str(path), facts={"reason": str(error)[:300]},
            fix="copy or download it again",
        ) from error  # fmt: skip
    if not isinstance(content, dict):
        raise MechstudyError(f"{CONFIG} is no mapping", where=str(path), fix="copy or download it again")
    return Fields(content, path)


def write_set(
    dictionaries: Mapping[int, DictionaryLike] | Sequence[DictionaryLike],
    folder: AnyPath,
    *,
    model_name: str,
    scan: str = "",
) -> None:
    """Write a set that circuit-tracer loads, in place of an earlier one.

    Args:
        dictionaries: layer -> transcoder; or the transcoders of layers 0, 1, ... in order.
        folder: where to.
        model_name: the model they were trained on.
        scan: Neuronpedia's name of the set; the model's name if empty.

    Raises:
        MechstudyError: a layer is missing, the layers differ in width or sites, or one is not a transcoder; the folder
            cannot be written, or holds a dictionary of another kind.
    """
    folder = Path(folder)
    if not isinstance(dictionaries, Mapping):
        dictionaries = dict(enumerate(dictionaries))
    _refuse_gaps(dictionaries, folder)
    for layer, dictionary in sorted(dictionaries.items()):
        if dictionary.cfg.kind == "sae" or dictionary.cfg.d_in != dictionary.cfg.d_out:
            raise MechstudyError(
                f"layer {layer} is a {dictionary.cfg.kind} from {dictionary.cfg.d_in} to {dictionary.cfg.d_out}",
                where=str(folder),
                fix="transcoders of one width",
            )
    for what, values in (
        ("number of features", {d.cfg.d_sae for d in dictionaries.values()}),
        ("activation and k", {d.cfg.activation + str(d.cfg.k or "") * (d.threshold is None)
                              for d in dictionaries.values()}),
        ("input site", {d.cfg.site_in.partition(".")[0] for d in dictionaries.values()}),
        ("output site", {d.cfg.site_out.partition(".")[0] for d in dictionaries.values()}),
    ):  # fmt: skip
        if len(values) > 1:
            raise MechstudyError(
                f"the transcoders of a set have one {what}", where=str(folder),
                facts={"found": ", ".join(sorted(map(str, values)))}, fix="one architecture for all layers",
            )  # fmt: skip
    cfg = dictionaries[0].cfg
    topk = {"activation": "topk", "k": cfg.k} if cfg.activation == "topk" else {}
    with replacing(folder, "a transcoder set", CONFIG) as place:
        for layer, dictionary in sorted(dictionaries.items()):
            tensors: dict[str, Tensor] = {
                "W_enc": dictionary.W_enc.T, "W_dec": dictionary.W_dec,
                "b_enc": dictionary.b_enc, "b_dec": dictionary.b_dec,
            }  # fmt: skip
            if dictionary.threshold is not None:
                tensors[THRESHOLD] = dictionary.threshold.clamp_min(0.0)
            if dictionary.W_skip is not None:
                tensors["W_skip"] = dictionary.W_skip
            # In the header, so that a copied file is a topk too: circuit-tracer refuses a tensor k, which it writes.
            header = {_HEADER_K: str(dictionary.cfg.k)} if dictionary.threshold is None else {}
            write_safetensors(tensors, place / f"layer_{layer}.safetensors", header)
        out = written_hook(cfg.site_out, cfg.metadata)
        write_config(place, "transcoder_set", model_name, scan, cfg.site_in, out, **topk)


def write_config(folder: Path, kind: str, model_name: str, scan: str, site_in: str, site_out: str, **more: Any) -> None:
    """Write config.yaml; a site such as ``mlp_in.0``, or its kind alone, becomes the hook's name inside its block.

    Raises:
        MechstudyError: it cannot be written.
    """
    text = io.StringIO()
    hooks = {
        f"feature_{end}_hook": re.sub(r"^blocks\.\d+\.", "", hook_name(site if "." in site else f"{site}.0"))
        for end, site in (("input", site_in), ("output", site_out))
    }
    content = {"model_kind": kind, "model_name": model_name, **hooks, "scan": scan or model_name, **more}
    YAML(typ="safe", pure=True).dump(content, text)
    write_text(text.getvalue(), folder / CONFIG)


def refuse_negative(threshold: Tensor, path: Path) -> None:
    """Refuse negative thresholds: circuit-tracer's JumpReLU has no ReLU, so they let negative features through.

    Raises:
        MechstudyError: a threshold is negative.
    """
    if bool((threshold < 0).any()):
        raise MechstudyError(
            "thresholds are negative, and negative features, which circuit-tracer then has, cannot be represented",
            where=str(path),
            facts={"features": f"{int((threshold < 0).sum()):,} of {len(threshold):,}"},
            fix="clamp the thresholds at 0",
        )


def _refuse_gaps(layers: Mapping[int, object], folder: Path) -> None:
    missing = sorted(set(range(max(layers, default=0) + 1)) - set(layers))
    if missing:
        raise MechstudyError(
            f"a transcoder set has every layer from 0 on, and {len(missing) if layers else 'all'} are missing",
            where=str(folder),
            facts={"missing": ", ".join(map(str, missing))},
            fix="dictionaries.layers: all",
        )


def _k(config: Fields, t: Mapping[str, Tensor], d_sae: int, path: Path) -> int | None:
    """K of a TopK; None for ReLU and JumpReLU. What config.yaml and the file's tensors say must agree."""
    claims = claims_of(config)
    claims |= {f"tensor {name}": Claim("topk", whole_tensor(t, name, path)) for name in K if name in t}
    if (header := header_text(path, _HEADER_K)).isdigit():
        claims["header"] = Claim("topk", int(header))
    if THRESHOLD in t:
        claims[f"tensor {THRESHOLD}"] = Claim("jump_relu")
    claim = agreed(claims, path)
    if claim is None:
        return None
    if claim.activation == "jump_relu" and THRESHOLD not in t:
        raise without_thresholds(claims, path)
    k = claim.k
    if k is not None and not 1 <= k <= d_sae:
        raise MechstudyError(
            f"k = {k} active features of {d_sae} is impossible", where=str(path), fix="the k of the training"
        )
    return k
