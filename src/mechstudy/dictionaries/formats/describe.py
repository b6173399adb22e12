"""What a path holds, for a person: one dictionary, or every one of a set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import dictionary_learning, format_of, gemma_scope, hub, read, saelens, sparsify
from mechstudy.dictionaries.formats.cross_layer import read_clt
from mechstudy.dictionaries.formats.fields import read_json
from mechstudy.dictionaries.paths import AnyPath

METRICS = "evaluation.json"  # beside the folder of a study's dictionary
_WEIGHTS = (saelens.WEIGHTS, sparsify.WEIGHTS, dictionary_learning.WEIGHTS, *gemma_scope.FILES)
_NO_METRIC = ("layer", "kind", "activation", "site_in", "site_out", "d_in", "d_out", "d_sae", "k")


def describe(place: AnyPath) -> list[dict[str, Any]]:
    """One entry for each dictionary at a path: in it, or in its files or folders, one level down.

    Keys: place, format, architecture (what the file calls it), kind, activation, d_in, d_sae, d_out, k, site_in,
    site_out, model, dtype, metrics. A cross-layer transcoder is one entry.

    Raises:
        MechstudyError: there is none, or one cannot be read.
    """
    path = hub.pull(str(place)) if hub.is_hub(str(place)) else Path(place)
    if path.is_dir() and any(path.glob("W_enc_*.safetensors")):
        return [_of_clt(path)]
    return [_of_one(found) for found in _dictionaries(path)]


def metrics_of(folder: AnyPath) -> dict[str, float]:
    """The numbers of evaluation.json, in the folder or beside it; none where there is no such file.

    Raises:
        MechstudyError: it is no JSON object.
    """
    folder = Path(folder)
    for path in (folder / METRICS, folder.absolute().parent / METRICS):
        if path.is_file():
            content = read_json(path)
            return {
                name: value
                for name, value in content.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NO_METRIC
            }
    return {}


def _dictionaries(path: Path) -> list[Path]:
    if not path.is_dir() or _holds_one(path):
        return [path]
    inside = [child for child in path.iterdir() if re.fullmatch(r"layer_\d+\.safetensors", child.name)]
    inside = inside or [child for child in path.iterdir() if child.is_dir() and _holds_one(child)]
    if not inside:
        raise MechstudyError(
            "there is no dictionary here, nor one folder down",
            where=str(path),
            facts={"looked for": ", ".join(_WEIGHTS) + ", layer_*.safetensors, W_enc_*.safetensors"},
            fix="the folder that holds one",
        )
    return sorted(inside, key=lambda child: [int(n) for n in re.findall(r"\d+", child.name)] or [0])


def _holds_one(folder: Path) -> bool:
    return any((folder / name).exists() for name in (*_WEIGHTS, saelens.CFG))


def _of_one(path: Path) -> dict[str, Any]:
    dictionary: Dictionary = read(path)
    cfg = dictionary.cfg
    return {
        "place": str(path),
        "format": format_of(path)[0],
        "architecture": cfg.metadata.get("architecture") or cfg.metadata.get("trained_as"),
        "kind": cfg.kind if dictionary.n_sites == 1 else f"crosscoder of {dictionary.n_sites} sites",
        "activation": cfg.activation,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "d_out": cfg.d_out,
        "k": cfg.k,
        "site_in": cfg.site_in,
        "site_out": cfg.site_out,
        "model": cfg.metadata.get("model_name"),
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "metrics": metrics_of(path if path.is_dir() else path.parent),
    }


def _of_clt(folder: Path) -> dict[str, Any]:
    clt = read_clt(folder)
    d_sae, d = clt["enc"][0].shape
    return {
        "place": str(folder),
        "format": "circuit-tracer",
        "architecture": "cross_layer_transcoder",
        "kind": f"cross-layer transcoder of {len(clt['enc'])} layers",
        "activation": "relu" if clt["threshold"] is None else "jumprelu",
        "d_in": d,
        "d_sae": d_sae,
        "d_out": d,
        "k": None,
        "site_in": clt["site_in"],
        "site_out": clt["site_out"],
        "model": clt["model_name"] or None,
        "dtype": str(clt["enc"][0].dtype).removeprefix("torch."),
        "metrics": metrics_of(folder),
    }
