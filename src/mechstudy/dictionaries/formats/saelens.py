"""mechstudy's own format, which is SAELens': cfg.json and sae_weights.safetensors.

| ours                               | architecture in cfg.json | SAELens 6 computes the same?    |
|------------------------------------|--------------------------|---------------------------------|
| sae, topk                          | topk                     | yes                             |
| sae, jumprelu (batchtopk, ...)     | jumprelu                 | yes                             |
| transcoder, jumprelu               | jumprelu_transcoder      | yes                             |
| skip_transcoder, jumprelu          | jumprelu_skip_transcoder | yes                             |
| transcoder, topk, d_in = d_out     | topk                     | yes; it uses hook_name_out      |
| transcoder, topk, d_in != d_out    | topk_transcoder          | refuses: it has no such class   |
| skip_transcoder, topk              | topk_skip_transcoder     | refuses: it has no such class   |

ReLU, Gated and Matryoshka dictionaries are JumpReLU ones at inference, and are written as such.
`read` uses the exact description under `metadata.mechstudy`; files without it are SAELens' own, and are read by
`saelens_foreign`. SAELens has no sinks (`max_input_norm`): on such rows it returns features, and a `Dictionary` none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats import saelens_foreign
from mechstudy.dictionaries.formats.fields import Fields, read_json
from mechstudy.dictionaries.formats.folders import replacing
from mechstudy.dictionaries.formats.hooks import hook_name, split_head
from mechstudy.dictionaries.formats.tensors import read_safetensors, require, write_safetensors, write_text
from mechstudy.dictionaries.stored import (
    AnyPath,
    DictionaryKind,
    DictionaryLike,
    DictionaryMeta,
    FileTensor,
    StoredDictionary,
    all_tensors,
    expected_shapes,
)

CFG = "cfg.json"
WEIGHTS = saelens_foreign.WEIGHTS
FORMAT = 1  # of metadata.mechstudy
SAELENS_VERSION = "6.0.0"  # of the format; without it SAELens 6 treats the file as an old one and drops metadata


def architecture_name(cfg: DictionaryMeta) -> str:
    """The SAELens name written for a dictionary; see the table above."""
    if cfg.kind == "sae":
        return cfg.activation
    if cfg.activation == "jumprelu":
        return f"jumprelu_{cfg.kind}"
    # A name that SAELens does not have makes it refuse; "transcoder" would load there, as a ReLU one.
    return "topk" if cfg.kind == "transcoder" and cfg.d_in == cfg.d_out else f"topk_{cfg.kind}"


def read_by_saelens(cfg: DictionaryMeta) -> bool:
    """Whether SAELens loads what `write` writes of such a dictionary, and computes the same."""
    return architecture_name(cfg) not in ("topk_transcoder", "topk_skip_transcoder")


def write(dictionary: DictionaryLike, folder: AnyPath) -> None:
    """Write both files, in place of an earlier dictionary's. The bytes depend on the dictionary alone.

    Raises:
        MechstudyError: the folder cannot be written, or holds another tool's dictionary, or `metadata` is not
            JSON.
    """
    cfg = dictionary.cfg
    content: dict[str, Any] = {
        "architecture": architecture_name(cfg),
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        # SAELens takes [heads, d_head] where a `Dictionary` takes the heads in one row.
        "reshape_activations": cfg.metadata.get("reshape_activations", "none"),
    }
    if cfg.kind != "sae":
        content["d_out"] = cfg.d_out
    if cfg.activation == "topk":
        content |= {"k": cfg.k, "rescale_acts_by_decoder_norm": False}
    site_in, head = split_head(cfg.site_in)
    content["metadata"] = {
        "sae_lens_version": SAELENS_VERSION,
        "model_name": cfg.metadata.get("model_name"),
        "hook_name": hook_name(site_in),
        "hook_head_index": head,
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
        site_out, head_out = split_head(cfg.site_out)
        content["metadata"]["hook_name_out"] = hook_name(site_out)
        if head_out is not None:
            content["metadata"]["hook_head_index_out"] = head_out
    try:
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise MechstudyError(
            "the dictionary's metadata cannot be written as JSON",
            where=str(folder),
            facts={"reason": str(error)},
            fix="text, finite numbers, lists and objects of these",
        ) from error
    with replacing(folder, "SAELens", CFG) as place:
        tensors = {name: tensor for name, tensor in all_tensors(dictionary).items() if tensor is not None}
        write_safetensors(tensors, place / WEIGHTS)
        write_text(text, place / CFG)


def read(folder: AnyPath, *, mapped: bool = False) -> StoredDictionary:
    """Read a folder that mechstudy or SAELens wrote (see `saelens_foreign.convert`).

    Where ``mapped``, matrices stay in the file, with values unread and unchecked.

    Raises:
        MechstudyError: a file or tensor is missing or damaged, or SAELens' architecture cannot be represented.
    """
    folder = Path(folder)
    fields = Fields(read_json(folder / CFG), folder / CFG)
    ours = fields.table("metadata").table("mechstudy")
    if not ours.content:
        return saelens_foreign.convert(fields, folder, mapped=mapped)
    meta = _our_meta(fields, ours)
    tensors = read_safetensors(folder / WEIGHTS)
    shapes = expected_shapes(meta)
    require(tensors, shapes, folder / WEIGHTS, mapped=mapped)
    files = {name: FileTensor(folder / WEIGHTS, name) for name in ("W_enc", "W_dec")}
    return StoredDictionary(meta, **{name: tensors[name] for name in shapes}, files=files)


def _our_meta(fields: Fields, ours: Fields) -> DictionaryMeta:
    where = str(fields.where)
    if (version := ours.whole("format", 0, least=0)) != FORMAT:
        raise MechstudyError(
            f"metadata.mechstudy has format {version}, this version reads {FORMAT}",
            where=where,
            fix="use the version of mechstudy that wrote it",
        )
    kind, activation = ours.text("kind"), ours.text("activation")
    if kind not in get_args(DictionaryKind) or activation not in ("topk", "jumprelu"):
        raise MechstudyError(
            f"unknown dictionary: {kind or 'no kind'} with {activation or 'no activation'}",
            where=where,
            facts={"kinds": ", ".join(get_args(DictionaryKind)), "activations": "topk, jumprelu"},
            fix="the cfg.json that mechstudy wrote",
        )
    d_in, free = fields.whole("d_in"), ours.table("metadata")
    for limit in ("max_input_norm", "max_output_norm"):
        if limit in free:
            free.number(limit)
    if "n_sites" in free and d_in % free.whole("n_sites"):
        raise MechstudyError(
            f"d_in = {d_in} does not hold {free.whole('n_sites')} sites of one width", where=where,
            fix="the cfg.json that mechstudy wrote",
        )  # fmt: skip
    meta = DictionaryMeta(
        kind=kind,  # type: ignore[arg-type]  # checked above
        activation=activation,  # type: ignore[arg-type]  # checked above
        d_in=d_in,
        d_out=d_in if kind == "sae" else fields.whole("d_out", d_in),
        d_sae=fields.whole("d_sae"),
        k=ours.whole("k") if "k" in ours else None,
        site_in=ours.text("site_in"),
        site_out=ours.text("site_out"),
        metadata=dict(free.content),
    )
    # Before topk transcoders had names of their own, they were written under the name of the kind.
    known = {architecture_name(meta)} | ({kind} if activation == "topk" else set())
    if (architecture := fields.text("architecture")) not in known:
        raise MechstudyError(
            "architecture and metadata.mechstudy contradict each other",
            where=where,
            facts={"architecture": architecture, "expected": architecture_name(meta)},
            fix="the cfg.json that mechstudy wrote",
        )
    return meta
