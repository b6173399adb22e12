"""EleutherAI's sparsify: a folder per hookpoint with ``cfg.json`` and ``sae.safetensors``. TopK only.

Its autoencoders subtract b_dec from their input; that is folded into b_enc when reading, and undone when writing.
The folder's name is the module whose output it is of. In families that norm the outputs of MLP and attention before
adding them (Gemma 2 and 3), ``layers.3.mlp`` is not `mlp_out.3`, and stays its name (`hooks.module_site`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.fields import Fields, read_json
from mechstudy.dictionaries.formats.folders import replacing
from mechstudy.dictionaries.formats.hooks import module_site, named_module, norm_after
from mechstudy.dictionaries.formats.tensors import (
    of_one_dtype,
    read_safetensors,
    require,
    transposed,
    without_centring,
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
from mechstudy.models.sites import SITES

CFG, WEIGHTS = "cfg.json", "sae.safetensors"
RUN = "config.json"  # of a training run, beside its hookpoints' folders


def read(folder: AnyPath, *, mapped: bool = False) -> StoredDictionary:
    """Read one hookpoint's folder; ``mapped`` leaves the matrices in the file, with values unchecked.

    Raises:
        MechstudyError: a file or tensor is missing or damaged, or the activation is not topk.
    """
    folder = Path(folder)
    fields, tensors = Fields(read_json(folder / CFG), folder / CFG), read_safetensors(folder / WEIGHTS)
    if (activation := fields.text("activation", "topk")) != "topk":
        raise MechstudyError(
            f"activation {activation!r} cannot be represented here", where=str(folder / CFG), fix="a topk dictionary"
        )
    if fields.flag("signed", False):  # of older versions
        raise MechstudyError(
            "signed latents, the k of largest magnitude, cannot be represented here", where=str(folder / CFG),
            fix="a dictionary without signed",
        )  # fmt: skip
    d_in = fields.whole("d_in")
    d_sae = fields.whole("num_latents", 0, least=0) or d_in * fields.whole("expansion_factor", 32)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,),
    }  # fmt: skip
    transcode, skip = fields.flag("transcode", False), fields.flag("skip_connection", False)
    if skip:
        shapes["W_skip"] = (d_in, d_in)
    require(tensors, shapes, folder / WEIGHTS, mapped=mapped)
    kind: DictionaryKind = "skip_transcoder" if skip else "transcoder" if transcode else "sae"
    hookpoint, model = folder.absolute().name, _model(folder, fields)
    site_in, site_out = _sites(hookpoint, transcode, model)
    metadata = {"model_name": model} if model else {}
    metadata |= named_module(hookpoint)
    W_enc, b_enc = transposed(tensors["encoder.weight"], mapped=mapped), tensors["encoder.bias"]
    meta = DictionaryMeta(kind, "topk", d_in, d_in, d_sae, fields.whole("k", 32), site_in, site_out, metadata)
    weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    if not transcode:
        weights["b_enc"] = without_centring(b_enc, tensors["b_dec"], W_enc)
    if skip:
        weights["W_skip"] = tensors["W_skip"]
    path = folder / WEIGHTS
    files = {"W_enc": FileTensor(path, "encoder.weight", transposed=True), "W_dec": FileTensor(path, "W_dec")}
    return StoredDictionary(meta, **of_one_dtype(weights), files=files)


def write(dictionary: DictionaryLike, folder: AnyPath) -> None:
    """Write one hookpoint's folder, in place of an earlier dictionary's.

    Raises:
        MechstudyError: the dictionary is not topk, or its input and output differ in width; the folder's name is the
            hookpoint of another tensor; the folder cannot be written, or holds another tool's dictionary.
    """
    cfg, folder = dictionary.cfg, Path(folder)
    if cfg.activation != "topk" or cfg.d_in != cfg.d_out:
        raise MechstudyError(
            f"sparsify has no {cfg.activation} dictionary from {cfg.d_in} to {cfg.d_out}",
            where=str(folder),
            fix="activation: topk and one width, or SAELens' format",
        )
    _refuse_other_tensor(cfg, folder)
    b_enc = dictionary.b_enc
    if cfg.kind == "sae":
        b_enc = without_centring(b_enc, -dictionary.b_dec, dictionary.W_enc)
    tensors = {
        "encoder.weight": dictionary.W_enc.T, "encoder.bias": b_enc, "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }  # fmt: skip
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip
    content = {
        "activation": "topk",
        "num_latents": cfg.d_sae,
        "k": cfg.k,
        "transcode": cfg.kind != "sae",
        "skip_connection": cfg.kind == "skip_transcoder",
        "normalize_decoder": False,
        "d_in": cfg.d_in,
    }
    if cfg.metadata.get("model_name"):
        content["model_name"] = cfg.metadata["model_name"]  # sparsify ignores fields that it does not know
    with replacing(folder, "sparsify", CFG) as place:
        write_safetensors(tensors, place / WEIGHTS)
        write_text(json.dumps(content, indent=1) + "\n", place / CFG)


def _sites(hookpoint: str, transcode: bool, model: str) -> tuple[str, str]:
    """Sites of a hookpoint such as ``layers.3.mlp``; names that are no hookpoints stay as they are."""
    out = module_site(hookpoint, model)
    layer = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)\.mlp", hookpoint)
    return (f"mlp_in.{layer[1]}", out) if transcode and layer else (out, out)


def _model(folder: Path, fields: Fields) -> str:
    """The model that cfg.json or the run's config.json, one folder up, names; "" if none does."""
    if "model_name" in fields:
        return fields.text("model_name")
    run = folder.absolute().parent / RUN
    return Fields(read_json(run), run).text("model") if run.is_file() else ""


def _refuse_other_tensor(cfg: DictionaryMeta, folder: Path) -> None:
    """Refuse a folder whose name is the hookpoint of another tensor than the dictionary's."""
    name = folder.absolute().name
    model = str(cfg.metadata.get("model_name") or "")
    sites = _sites(name, cfg.kind != "sae", model)
    if sites[1] == cfg.site_out or module_site(name) == name:
        return
    kind, _, layer = cfg.site_out.partition(".")
    if kind not in SITES:
        return
    norm = norm_after(kind, model)
    better = "a name of that module" if norm is None else f"layers.{layer}.{norm}"
    raise MechstudyError(
        f"a folder named {name} holds dictionaries of that module's output, and this one is of {cfg.site_out}",
        where=str(folder),
        facts={"model": model or "not recorded"},
        fix=f"a folder named {better}, or SAELens' format",
    )
