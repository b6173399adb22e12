"""Recognises the format of a stored dictionary by its files, and reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    hub,
    llama_scope,
    qwen_scope,
    saelens,
    sparsify,
)
from mechstudy.dictionaries.formats.fields import Fields
from mechstudy.dictionaries.formats.hooks import config_hook, named_module, site_name
from mechstudy.dictionaries.formats.recognise import QWEN, Source, source_of
from mechstudy.dictionaries.stored import AnyPath, StoredDictionary

_READERS: dict[str, Callable[..., StoredDictionary]] = {
    "SAELens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
    "circuit-tracer": circuit_tracer.read,
    "Gemma Scope": gemma_scope.read,
    "Llama Scope": llama_scope.read,
    "Llama Scope 2": llama_scope.read_2,
    QWEN: qwen_scope.read,
}


def read(place: AnyPath | Source, *, mapped: bool = False) -> StoredDictionary:
    """Read one dictionary of a supported format (docs/reference/dictionaries.md lists them).

    Args:
        place: a folder or a file of a set; or ``hf:owner/name/folder@revision`` for one of these on the Hugging Face
            hub; or what `sets.sources` found.
        mapped: leave matrices in their file where the format allows: they are read as they are used, and their values
            are not checked.

    Raises:
        MechstudyError: no dictionary of a known format is there, or it is damaged or cannot be represented. No pickle
            is executed, whatever the file says.
    """
    source = place if isinstance(place, Source) else source_of(local_path(place))
    try:
        if source.listed is None:
            stored = _READERS[source.format](source.path, mapped=mapped)
        else:
            stored = _member(source, source.listed, mapped)
        if source.sites is None:
            return stored
        return replace(stored, cfg=replace(stored.cfg, site_in=source.sites[0], site_out=source.sites[1]))
    except MechstudyError as error:
        if error.where is not None:
            raise
        fix = error.fix or "the config and the weights of one dictionary"
        raise MechstudyError(error.what, where=str(source), facts=error.facts, fix=fix) from error


def local_path(place: AnyPath) -> Path:
    """The path itself, or the local copy of what it names on the hub."""
    return hub.pull(str(place)) if hub.is_hub(str(place)) else Path(place)


def _member(source: Source, config: Fields, mapped: bool) -> StoredDictionary:
    """A dictionary of a list, which has the sites that the list's config.yaml names."""
    if source.format == "circuit-tracer":
        return circuit_tracer.read(source.path, mapped=mapped, config=config, layer=source.layer)
    stored = _READERS[source.format](source.path, mapped=mapped)
    cfg = stored.cfg
    for site in (cfg.site_in, cfg.site_out):
        kind, _, layer = site.rpartition(".")
        if kind and layer.isdigit() and int(layer) != source.layer:
            raise MechstudyError(
                f"entry {source.layer} of the list is a dictionary of {site}", where=str(config.where),
                facts={"file": str(source.path)}, fix="one transcoder for each layer, from 0 on and in order",
            )  # fmt: skip
    hooks = [config_hook(config.text(f"feature_{end}_hook")) for end in ("input", "output")]
    metadata = dict(cfg.metadata)
    if "model_name" in config:
        metadata["model_name"] = config.text("model_name")
    model = str(metadata.get("model_name") or "")
    named = [f"blocks.{source.layer}.{hook}" if hook else "" for hook in hooks]
    sites = [site_name(hook, model) for hook in named]
    metadata |= named_module(named[1])
    meta = replace(cfg, site_in=sites[0] or cfg.site_in, site_out=sites[1] or cfg.site_out, metadata=metadata)
    return replace(stored, cfg=meta)
