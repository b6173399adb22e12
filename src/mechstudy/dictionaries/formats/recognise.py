"""Tells by its files which tool wrote a dictionary. Nothing is guessed: unknown and ambiguous places are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    qwen_scope,
    saelens,
    sparsify,
)
from mechstudy.dictionaries.formats.circuit_tracer import CONFIG, read_config
from mechstudy.dictionaries.formats.fields import Fields, read_json
from mechstudy.models.readable import check_readable

SET_FILE = re.compile(r"layer_(\d+)\.safetensors")
CLT_FILE = re.compile(r"W_(enc|dec)_(\d+)\.safetensors")
SET, CLT, GEMMA_CLT, QWEN = "a transcoder set", "a cross-layer transcoder", "a Gemma Scope 2 CLT", "Qwen-Scope"
LISTED = "a list of transcoders"
CROSS_LAYER = (CLT, GEMMA_CLT)
SEVERAL = (*CROSS_LAYER, SET, QWEN, LISTED)  # places that hold several dictionaries, or all layers of one
_SIGNS = {
    "SAELens": saelens.WEIGHTS,
    "sparsify": sparsify.WEIGHTS,
    "dictionary_learning": dictionary_learning.WEIGHTS,
    "Llama Scope": llama_scope.CFG,
    "Llama Scope 2": f"{llama_scope.WEIGHTS_2}, {llama_scope.CFG_2}",
    SET: "layer_*.safetensors",
    GEMMA_CLT: "params_layer_*.safetensors",
    CLT: "W_enc_*.safetensors, W_dec_*.safetensors",
    QWEN: "layer*.sae.pt",
    LISTED: CONFIG,
}
LOOKED_FOR = (
    "sae_weights.safetensors, sae.safetensors, ae.pt, params.npz, params.safetensors, hyperparams.json, "
    "layer_*.safetensors, layer*.sae.pt, W_enc_*.safetensors, config.yaml with transcoders"
)


@dataclass(frozen=True)
class Source:
    """Where one dictionary is: its format, and the folder or file that the format's reader takes.

    ``listed`` is its set's config.yaml, and ``layer`` its place in the list there, which decide its sites. ``sites``
    are those that its user names (read, written), whatever its files say.
    """

    format: str
    path: Path
    layer: int | None = None
    listed: Fields | None = field(default=None, compare=False)
    sites: tuple[str, str] | None = None

    def __str__(self) -> str:
        return str(self.path)


def source_of(path: Path) -> Source:
    """The one dictionary at a path.

    Raises:
        MechstudyError: there is none, or several, or files of two tools; or its tool is not known or not read.
    """
    if not path.is_dir():
        return _of_file(path)
    kind, place = only_format(path)
    if kind in CROSS_LAYER:
        raise MechstudyError(
            "this is a cross-layer transcoder",
            where=str(path),
            fix="load_dictionaries, which gives every layer; or the whole: CrossLayerTranscoder.load",
        )
    if kind in SEVERAL:
        files = sorted(p for p in path.iterdir() if SET_FILE.fullmatch(p.name) or qwen_scope.FILE.fullmatch(p.name))
        what = f"a set of {len(files)} dictionaries" if kind == QWEN else f"a set of {len(files)} transcoders"
        raise MechstudyError(
            "this is a set whose config.yaml lists its transcoders" if kind == LISTED else f"this is {what}",
            where=str(path),
            fix="load_dictionaries, which reads every layer" + (f"; or one: {files[0]}" if files else ""),
        )
    return Source(kind, place)


def only_format(folder: Path) -> tuple[str, Path]:
    """The format of a folder, and what its reader takes.

    Raises:
        MechstudyError: it holds no dictionary of a known tool, or those of two.
    """
    found = formats_in(folder)
    if len(found) > 1:
        raise MechstudyError(
            "the folder holds dictionaries of two tools or kinds, and which is meant is not clear",
            where=str(folder),
            facts={kind: _SIGNS.get(kind) or place.name for kind, place in found},
            fix="a folder for each",
        )
    if not found:
        raise MechstudyError(
            "there is no dictionary of a known tool here",
            where=str(folder),
            facts={"holds": listing(folder), "looked for": LOOKED_FOR},
            fix="the folder that holds one; of another tool, save it again in SAELens' format",
        )
    return found[0]


def formats_in(folder: Path) -> list[tuple[str, Path]]:
    """Every format whose files a folder holds; a format twice if it holds two files of it, such as params.npz too."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise MechstudyError(
            "the folder cannot be read", where=str(folder), facts={"reason": str(error)}, fix="another folder"
        ) from error
    found: list[tuple[str, Path]] = []
    if saelens.WEIGHTS in names:
        two = saelens.CFG not in names and _is_llama_scope_2(folder)
        found.append(("Llama Scope 2" if two else "SAELens", folder))
    if sparsify.WEIGHTS in names:
        found.append(("sparsify", folder))
    if dictionary_learning.WEIGHTS in names:
        found.append(("dictionary_learning", folder))
    found += [("Gemma Scope", folder / name) for name in gemma_scope.FILES if name in names]
    if llama_scope.CFG in names or (folder / llama_scope.WEIGHTS).exists():
        found.append(("Llama Scope", folder))
    if any(gemma_scope.CLT_FILE.fullmatch(name) and "w_enc" in _tensors(folder / name) for name in names):
        found.append((GEMMA_CLT, folder))
    elif any(SET_FILE.fullmatch(name) for name in names):
        found.append((SET, folder))
    elif CONFIG in names and "transcoders" in read_config(folder):
        found.append((LISTED, folder))
    if any(qwen_scope.FILE.fullmatch(name) for name in names):
        found.append((QWEN, folder))
    if any(CLT_FILE.fullmatch(name) for name in names):
        found.append((CLT, folder))
    if not found and saelens.CFG in names:  # its weights are missing, which the reader says
        found.append(("SAELens", folder))
    return found


def _of_file(path: Path) -> Source:
    name = path.name
    if path.is_symlink():
        check_readable(path)
    if not path.exists():
        raise MechstudyError("there is no such file or folder", where=str(path), fix="the folder that holds one")
    if path.suffix == ".npz" or name in gemma_scope.FILES:
        return Source("Gemma Scope", path)
    if qwen_scope.FILE.fullmatch(name):
        return Source(QWEN, path)
    if name in (saelens.WEIGHTS, saelens.CFG, sparsify.WEIGHTS, dictionary_learning.WEIGHTS, llama_scope.CFG):
        return source_of(path.parent)
    if path.suffix != ".safetensors":
        raise MechstudyError(
            "this is no dictionary", where=str(path),
            facts={"looked for": LOOKED_FOR}
            | ({"reason": "a pickle of an unknown tool"} if path.suffix in (".pt", ".pth", ".bin", ".pkl") else {}),
            fix="a folder, or a .safetensors or .npz file of a set",
        )  # fmt: skip
    tensors = _tensors(path)
    if tensors.keys() >= {"encoder.weight", "decoder.weight"} and (path.parent.parent / llama_scope.CFG).exists():
        return Source("Llama Scope", path.parent.parent)
    if tensors.keys() >= {"W_enc", "W_dec"} and tensors["W_enc"] != tensors["W_dec"] and _looks_like_saelens(tensors):
        _refuse_tensors(path, "a SAELens dictionary's tensors", "cfg.json", tensors)
    if "w_enc" in tensors:
        return Source("Gemma Scope", path)
    if any(CLT_FILE.fullmatch(f"{tensor}.safetensors") for tensor in tensors):
        raise MechstudyError(
            "this is one file of a cross-layer transcoder", where=str(path), fix=f"its folder: {path.parent}"
        )
    for signs, what, needs in _TENSORS:
        if tensors.keys() >= signs:
            _refuse_tensors(path, what, needs, tensors)
    if tensors and not tensors.keys() & {"W_enc", "W_dec", "b_enc", "b_dec"}:
        raise MechstudyError(
            "these are no tensors of a known tool's dictionary", where=str(path),
            facts={"tensors": ", ".join(sorted(tensors)[:8])}, fix="the folder or file of a dictionary",
        )  # fmt: skip
    return Source("circuit-tracer", path)


_TENSORS = (  # of files that do not say enough alone
    ({"encoder.weight", "decoder.weight"}, "a Llama Scope dictionary's tensors", f"{llama_scope.CFG} one folder up"),
    ({"encoder.weight", "W_dec"}, "a sparsify dictionary's tensors", "cfg.json beside sae.safetensors"),
    ({"W_E", "W_D"}, "a Llama Scope 2 dictionary's tensors", "config.json beside sae_weights.safetensors"),
)


def _refuse_tensors(path: Path, what: str, needs: str, tensors: dict[str, list[int]]) -> None:
    raise MechstudyError(
        f"the file holds {what}, which are not read without {needs}", where=str(path),
        facts={"tensors": ", ".join(sorted(tensors)[:8])}, fix="the folder as it was published",
    )  # fmt: skip


def _looks_like_saelens(tensors: dict[str, list[int]]) -> bool:
    encoder, bias = tensors["W_enc"], tensors.get("b_enc", tensors.get("b_gate"))
    return len(encoder) == 2 and bias is not None and encoder[1:] == bias


def _is_llama_scope_2(folder: Path) -> bool:
    path = folder / llama_scope.CFG_2
    return path.is_file() and "sae_type" in read_json(path)


def _tensors(path: Path) -> dict[str, list[int]]:
    """Names and shapes in a file's header; empty if it is damaged, which its reader says."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError):
        return {}


def listing(folder: Path) -> str:
    """The first names in a folder, for an error."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more if names else "nothing"
