"""EleutherAI's sparsify: a folder per hookpoint with ``cfg.json`` and ``sae.safetensors``. TopK only.

Its autoencoders subtract b_dec from their input; that is folded into b_enc when reading, and undone when writing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.fields import Fields, read_json
from mechstudy.dictionaries.formats.folders import replacing
from mechstudy.dictionaries.formats.tensors import (
    of_one_dtype,
    read_safetensors,
    require,
    without_centring,
    write_safetensors,
    write_text,
)
from mechstudy.dictionaries.stored import AnyPath, DictionaryKind, DictionaryLike, DictionaryMeta, StoredDictionary

CFG, WEIGHTS = "cfg.json", "sae.safetensors"


def read(folder: AnyPath) -> StoredDictionary:
    """Read one hookpoint's folder.

    Raises:
        MechstudyError: a file or tensor is missing or damaged, or the activation is not topk.
    """
    folder = Path(folder)
    fields, tensors = Fields(read_json(folder / CFG), folder / CFG), read_safetensors(folder / WEIGHTS)
    if (activation := fields.text("activation", "topk")) != "topk":
        raise MechstudyError(
            f"activation {activation!r} cannot be represented here", where=str(folder / CFG), fix="a topk dictionary"
        )
    d_in = fields.whole("d_in")
    d_sae = fields.whole("num_latents", 0, least=0) or d_in * fields.whole("expansion_factor", 32)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,),
    }  # fmt: skip
    transcode, skip = fields.flag("transcode", False), fields.flag("skip_connection", False)
    if skip:
        shapes["W_skip"] = (d_in, d_in)
    require(tensors, shapes, folder / WEIGHTS)
    kind: DictionaryKind = "skip_transcoder" if skip else "transcoder" if transcode else "sae"
    site_in, site_out = _sites(folder.absolute().name, transcode)
    W_enc, b_enc = tensors["encoder.weight"].T.contiguous(), tensors["encoder.bias"]
    meta = DictionaryMeta(kind, "topk", d_in, d_in, d_sae, fields.whole("k", 32), site_in, site_out)
    weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    if not transcode:
        weights["b_enc"] = without_centring(b_enc, tensors["b_dec"], W_enc)
    if skip:
        weights["W_skip"] = tensors["W_skip"]
    return StoredDictionary(meta, **of_one_dtype(weights))


def write(dictionary: DictionaryLike, folder: AnyPath) -> None:
    """Write one hookpoint's folder, in place of an earlier dictionary's.

    Raises:
        MechstudyError: the dictionary is not topk, or its input and output differ in width; the folder cannot be
            written, or holds another tool's dictionary.
    """
    cfg = dictionary.cfg
    if cfg.activation != "topk" or cfg.d_in != cfg.d_out:
        raise MechstudyError(
            f"sparsify has no {cfg.activation} dictionary from {cfg.d_in} to {cfg.d_out}",
            where=str(folder),
            fix="activation: topk and one width, or SAELens' format",
        )
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
    with replacing(folder, "sparsify", CFG) as place:
        write_safetensors(tensors, place / WEIGHTS)
        write_text(json.dumps(content, indent=1) + "\n", place / CFG)


def _sites(hookpoint: str, transcode: bool) -> tuple[str, str]:
    """Sites of a hookpoint such as ``layers.3.mlp``; other names stay as they are."""
    match = re.fullmatch(
        r"(?:model\.|transformer\.|gpt_neox\.)?(?:layers|h)\.(\d+)(?:\.(mlp|attn|self_attn))?", hookpoint
    )
    if match is None:
        return hookpoint, hookpoint
    layer, part = match[1], match[2]
    out = f"{'resid_post' if part is None else 'mlp_out' if part == 'mlp' else 'attn_out'}.{layer}"
    return (f"mlp_in.{layer}", out) if transcode and part == "mlp" else (out, out)
