"""EleutherAI's sparsify: a folder per hookpoint with ``cfg.json`` and ``sae.safetensors``. TopK only.

Its autoencoders subtract b_dec from their input; that is folded into b_enc when reading, and out again when writing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import Kind
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.formats.tensors import read_json, read_safetensors, require, without_centring

CFG, WEIGHTS = "cfg.json", "sae.safetensors"


def read(folder: Path) -> Dictionary:
    """Read one hookpoint's folder.

    Raises:
        MechstudyError: a file or tensor is missing or damaged, or the activation is not topk.
    """
    content, tensors = read_json(folder / CFG), read_safetensors(folder / WEIGHTS)
    if (activation := content.get("activation", "topk")) != "topk":
        raise MechstudyError(
            f"activation {activation!r} cannot be represented here", where=str(folder / CFG), fix="a topk dictionary"
        )
    d_in = int(content["d_in"]) if "d_in" in content else 0
    d_sae = int(content.get("num_latents") or d_in * int(content.get("expansion_factor", 32)))
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,),
    }  # fmt: skip
    transcode, skip = bool(content.get("transcode")), bool(content.get("skip_connection"))
    if skip:
        shapes["W_skip"] = (d_in, d_in)
    require(tensors, shapes, folder / WEIGHTS)
    kind: Kind = "skip_transcoder" if skip else "transcoder" if transcode else "sae"
    site_in, site_out = _sites(folder.name, transcode)
    W_enc, b_enc = tensors["encoder.weight"].T.contiguous(), tensors["encoder.bias"]
    meta = DictionaryMeta(kind, "topk", d_in, d_in, d_sae, int(content.get("k", 32)), site_in, site_out)
    return Dictionary(
        meta,
        W_enc=W_enc,
        b_enc=b_enc if transcode else without_centring(b_enc, tensors["b_dec"], W_enc),
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        W_skip=tensors.get("W_skip") if skip else None,
    )


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write one hookpoint's folder.

    Raises:
        MechstudyError: the dictionary is not topk, or its input and output differ in width.
    """
    from safetensors.torch import save_file

    cfg = dictionary.cfg
    if cfg.activation != "topk" or cfg.d_in != cfg.d_out:
        raise MechstudyError(
            f"sparsify has no {cfg.activation} dictionary from {cfg.d_in} to {cfg.d_out}",
            fix="activation: topk and one width, or SAELens' format",
        )
    folder.mkdir(parents=True, exist_ok=True)
    b_enc = dictionary.b_enc
    if cfg.kind == "sae":
        b_enc = without_centring(b_enc, -dictionary.b_dec, dictionary.W_enc)
    tensors = {
        "encoder.weight": dictionary.W_enc.T, "encoder.bias": b_enc, "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }  # fmt: skip
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    content = {
        "activation": "topk",
        "num_latents": cfg.d_sae,
        "k": cfg.k,
        "transcode": cfg.kind != "sae",
        "skip_connection": cfg.kind == "skip_transcoder",
        "normalize_decoder": False,
        "d_in": cfg.d_in,
    }
    (folder / CFG).write_text(json.dumps(content, indent=1) + "\n")


def _sites(hookpoint: str, transcode: bool) -> tuple[str, str]:
    """Sites of a hookpoint such as ``layers.3.mlp``; other names stay as they are."""
    found = re.fullmatch(
        r"(?:model\.|transformer\.|gpt_neox\.)?(?:layers|h)\.(\d+)(?:\.(mlp|attn|self_attn))?", hookpoint
    )
    if found is None:
        return hookpoint, hookpoint
    layer, part = found[1], found[2]
    out = f"{'resid_post' if part is None else 'mlp_out' if part == 'mlp' else 'attn_out'}.{layer}"
    return (f"mlp_in.{layer}", out) if transcode and part == "mlp" else (out, out)
