"""Summaries of stored dictionaries: one dictionary, or every one of a set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechstudy.dictionaries.evaluation import loss_recovered
from mechstudy.dictionaries.formats import gemma_scope
from mechstudy.dictionaries.formats.cross_layer import read_clt
from mechstudy.dictionaries.formats.fields import read_json
from mechstudy.dictionaries.formats.hooks import HOOKPOINT
from mechstudy.dictionaries.formats.recognise import CROSS_LAYER, Source
from mechstudy.dictionaries.formats.registry import local_path, read
from mechstudy.dictionaries.formats.sets import clt_files, is_cross_layer, sources
from mechstudy.dictionaries.stored import AnyPath, shown_activation

METRICS = "evaluation.json"  # beside the folder of a study's dictionary
_NO_METRIC = ("layer", "kind", "activation", "site_in", "site_out", "d_in", "d_out", "d_sae", "k")


def describe(place: AnyPath | Source, *, mapped: bool = False) -> list[dict[str, Any]]:
    """One entry for each dictionary at a path: in it, or in its files or folders, one level down.

    Args:
        place: a path, or ``hf:owner/name/folder@revision``; or what `sets.sources` found.
        mapped: leave matrices unread and unchecked where the format allows: fast for large sets.

    Returns:
        place, format, architecture (as the file names it), kind, activation, d_in, d_sae, d_out, k, site_in, site_out,
        model, hookpoint, dtype, metrics of each, and in_file: whether both matrices can stay in the file
        (`lazy.LazyDictionary`); listed: the folder of the set whose config.yaml lists it; site_assumed: whether neither
        the files nor their folders name the site.
        A cross-layer transcoder is one entry, with n_layers; also where one layer of it is meant (layer).

    Raises:
        MechstudyError: there is none, or one cannot be read.
    """
    if isinstance(place, Source):
        if place.format in CROSS_LAYER:
            return [_describe_clt(place.path, place.layer) | {"layer": place.layer}]
        return [_describe_one(place, mapped)]
    path = local_path(place)
    if is_cross_layer(path):
        return [_describe_clt(path)]
    return [_describe_one(source, mapped) for source in sources(path)]


def metrics_of(folder: AnyPath) -> dict[str, float]:
    """The numbers of evaluation.json, in the folder or beside it; empty if there is no such file.

    Raises:
        MechstudyError: it is no JSON object.
    """
    folder = Path(folder)
    for path in (folder / METRICS, folder.absolute().parent / METRICS):
        if path.is_file():
            content = loss_recovered.checked(read_json(path))
            return {
                name: value
                for name, value in content.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NO_METRIC
            }
    return {}


def _describe_one(source: Source, mapped: bool) -> dict[str, Any]:
    stored, path = read(source, mapped=mapped), source.path
    cfg = stored.cfg
    return {
        "place": str(path),
        "format": source.format,
        "architecture": cfg.metadata.get("architecture") or cfg.metadata.get("trained_as"),
        "kind": cfg.kind if cfg.n_sites == 1 else f"crosscoder of {cfg.n_sites} sites",
        "activation": shown_activation(cfg, stored.threshold),
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "d_out": cfg.d_out,
        "k": cfg.k,
        "site_in": cfg.site_in,
        "site_out": cfg.site_out,
        "model": cfg.metadata.get("model_name"),
        HOOKPOINT: cfg.metadata.get(HOOKPOINT),
        "dtype": str(stored.W_enc.dtype).removeprefix("torch."),
        "metrics": metrics_of(path if path.is_dir() else path.parent),
        "in_file": stored.in_file,
        "listed": None if source.listed is None else str(source.listed.where.parent),
        "site_assumed": source.format == "Gemma Scope" and gemma_scope.site_is_assumed(path),
    }


def _describe_clt(folder: Path, layer: int | None = None) -> dict[str, Any]:
    """The whole, of which only the tensors of one layer are read if one is named."""
    files = clt_files(folder)
    clt = read_clt(folder, layer) if files is None else gemma_scope.read_clt(files, layer)
    d_sae, d = clt["enc"][0].shape
    n_layers = (layer or 0) + clt["dec"][0].shape[1]
    return {
        "place": str(folder),
        "format": "circuit-tracer" if files is None else "Gemma Scope 2",
        "architecture": "cross_layer_transcoder",
        "kind": f"cross-layer transcoder of {n_layers} layers",
        "activation": "relu" if clt["threshold"] is None else "jumprelu",
        "d_in": d,
        "d_sae": d_sae,
        "d_out": d,
        "k": None,
        "site_in": clt["site_in"],
        "site_out": clt["site_out"],
        "model": clt["model_name"] or None,
        HOOKPOINT: clt["hookpoint"] or None,
        "dtype": str(clt["enc"][0].dtype).removeprefix("torch."),
        "metrics": metrics_of(folder),
        "in_file": False,
        "listed": None,
        "n_layers": n_layers,
    }
