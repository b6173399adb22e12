"""Loads dictionaries of any kind and format: one, or every one of a set."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.core.notices import counted
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder, load_layer
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.hooks import at_layer, check_layer, check_one_layer, layer_of
from mechstudy.dictionaries.formats.recognise import CROSS_LAYER, Source
from mechstudy.dictionaries.formats.registry import local_path
from mechstudy.dictionaries.formats.sets import is_cross_layer, sources
from mechstudy.dictionaries.lazy import LazyDictionary
from mechstudy.dictionaries.stored import AnyPath, shown_activation


def load_dictionary(
    place: AnyPath | Source, *, device: str = "cpu", dtype: torch.dtype | None = None, lazy: bool = False
) -> Dictionary | CrossLayerTranscoder:
    """Load a dictionary of any supported format.

    Args:
        place: a folder, a file of a set, or ``hf:owner/name/folder@revision`` (see docs/reference/dictionaries.md).
        device: where its tensors go.
        dtype: of its tensors; None keeps the file's.
        lazy: leave its encoder and decoder in the file (`lazy.LazyDictionary`); not for cross-layer transcoders.

    Raises:
        MechstudyError: no dictionary of a known format is there, or it is damaged or cannot be represented.
    """
    path = place if isinstance(place, Source) else local_path(place)
    if isinstance(path, Path) and is_cross_layer(path):
        return CrossLayerTranscoder.load(path).to(device=device, dtype=dtype)
    return _loaded(path, device, dtype, lazy)


class MissingLayer(MechstudyError, KeyError):
    """There is no dictionary of this layer; also a KeyError, as a Mapping promises."""


class DictionarySet(Mapping[int, Dictionary]):
    """One dictionary for each of some layers: ``dicts[13]`` is layer 13's; ``frame`` lists them.

    Those passed as a path are read when they are first used, and then kept. If the set is ``lazy``, their matrices are
    not (`lazy.LazyDictionary`): a set of any size needs the memory of the layer in use.
    """

    def __init__(
        self,
        by_layer: Mapping[int, Dictionary | AnyPath | Source],
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        lazy: bool = False,
    ) -> None:
        self._by_layer = dict(sorted(by_layer.items()))
        self._device, self._dtype, self._lazy = device, dtype, lazy

    def __getitem__(self, layer: int) -> Dictionary:
        if layer not in self._by_layer:
            raise MissingLayer(
                f"there is no dictionary of layer {layer!r}",
                facts={"layers": ", ".join(map(str, self._by_layer)) or "none"},
            )
        held = self._by_layer[layer]
        if not isinstance(held, Dictionary):
            held = self._by_layer[layer] = _loaded(held, self._device, self._dtype, self._lazy)
        return held

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_layer)

    def __len__(self) -> int:
        return len(self._by_layer)

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each dictionary: layer, kind, activation, site_in, site_out, d_in, d_sae, k."""
        columns = ("kind", "activation", "site_in", "site_out", "d_in", "d_sae", "k")
        rows = [{"layer": layer} | {name: getattr(d.cfg, name) for name in columns} for layer, d in self.items()]
        for row in rows:
            row["activation"] = shown_activation(self[row["layer"]].cfg, self[row["layer"]].threshold)
        return pl.DataFrame(rows)

    def __repr__(self) -> str:
        return f"DictionarySet of {counted(len(self), 'layer')}\n{self.frame}"

    def _repr_html_(self) -> str:
        return self.frame._repr_html_()


Place = AnyPath | Dictionary | CrossLayerTranscoder | Source
ONE_PLACE = (str, os.PathLike, Dictionary, CrossLayerTranscoder, Source)  # its types


def load_dictionaries(
    places: Place | Iterable[Place] | Mapping[int, Place],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    lazy: bool = False,
) -> DictionarySet:
    """Load several dictionaries by the layer they read.

    Args:
        places: a dictionary or its path (see `load_dictionary`); a folder of dictionaries (a circuit-tracer set, or one
            folder for each), or a set on the hub, such as ``hf:mntss/gemma-scope-transcoders``; a list of these; or a
            mapping from layers, where the files do not name theirs (where they do, they must agree).
        device: where their tensors go.
        dtype: of their tensors; None keeps the files'.
        lazy: leave encoders and decoders in their files (`lazy.LazyDictionary`); not those of cross-layer transcoders.

    Of a cross-layer transcoder, every layer is one dictionary whose features write to that layer and those above
    (`clt_layer.CltLayer`).

    Raises:
        MechstudyError: there is none, one cannot be read, names no layer or another than the mapping, or two read the
            same layer.
    """

    def moved(one: Dictionary) -> Dictionary:
        return one.to(device=str(device), dtype=dtype)

    def loaded(place: Place, layer: int) -> Dictionary:
        if isinstance(place, CrossLayerTranscoder):
            return moved(place.layer(layer))
        if isinstance(place, Dictionary):
            check_layer(place.cfg.site_in, layer, _name(place))
            return moved(place)
        path = place if isinstance(place, Source) else local_path(place)
        if isinstance(path, Path) and is_cross_layer(path):
            return moved(load_layer(path, layer))
        one = _loaded(path, str(device), dtype, lazy)
        check_layer(one.cfg.site_in, layer, _name(place))
        check_one_layer(one.cfg.site_in, one.cfg.site_out, _name(place))
        one.cfg = replace(one.cfg, site_in=at_layer(one.cfg.site_in, layer), site_out=at_layer(one.cfg.site_out, layer))
        return one

    def layers(place: Place) -> Iterator[tuple[int, Dictionary, Place]]:
        if isinstance(place, CrossLayerTranscoder):
            yield from ((layer, moved(one), place) for layer, one in place.layers().items())
            return
        if isinstance(place, Dictionary):
            yield _layer_of(place, place), moved(place), place
            return
        path = place if isinstance(place, Source) else local_path(place)
        if isinstance(path, Path) and is_cross_layer(path):
            first = load_layer(path, 0)
            yield 0, moved(first), path
            yield from ((layer, moved(load_layer(path, layer)), path) for layer in range(1, len(first.sites_out)))
            return
        for one in [path] if isinstance(path, Source) else sources(path):
            dictionary = _loaded(one, str(device), dtype, lazy)
            yield _layer_of(dictionary, one), dictionary, one

    places = checked_places(places)
    if isinstance(places, Mapping):
        return DictionarySet({int(layer): loaded(place, int(layer)) for layer, place in places.items()})
    by_layer: dict[int, Dictionary] = {}
    for place in places:
        for layer, dictionary, one in layers(place):
            where = _name(one)
            if layer in by_layer:
                raise MechstudyError(
                    f"two dictionaries read layer {layer}", where=where, fix="one dictionary for each layer"
                )
            by_layer[layer] = dictionary
    if not by_layer:
        raise MechstudyError("no dictionaries are named", fix="a folder, or a list of folders")
    return DictionarySet(by_layer)


def checked_places(places: object) -> Mapping[int, Place] | list[Place]:
    """What `load_dictionaries` accepts, as a list or a mapping of places.

    Raises:
        MechstudyError: it is something else, or holds something else.
    """
    several = not isinstance(places, ONE_PLACE) and isinstance(places, Iterable)
    listed: Any = places if isinstance(places, Mapping) else list(places) if several else [places]  # type: ignore[call-overload]
    for place in listed.values() if isinstance(listed, Mapping) else listed:
        if not isinstance(place, ONE_PLACE):
            raise MechstudyError(
                f"{reprlib.repr(place)} is no dictionary, nor the place of one",
                fix="a folder, a file or hf:owner/name; a list of these; or a mapping from layers: {12: ...}",
            )
    return listed  # type: ignore[no-any-return]


def _loaded(place: AnyPath | Source, device: str, dtype: torch.dtype | None, lazy: bool) -> Dictionary:
    if isinstance(place, Source) and place.format in CROSS_LAYER:
        assert place.layer is not None
        one = load_layer(place.path, place.layer)
        if place.sites is not None:
            one.cfg = replace(one.cfg, site_in=place.sites[0], site_out=place.sites[1])
        return one.to(device=device, dtype=dtype)
    if lazy:
        return LazyDictionary(place, device=device, dtype=dtype)
    return Dictionary.load(place, device=device, dtype=dtype)


def _layer_of(dictionary: Dictionary, place: Place) -> int:
    try:
        return layer_of(dictionary.cfg.site_in)
    except MechstudyError as error:
        raise MechstudyError(
            f"the dictionary does not name its layer: it reads {dictionary.cfg.site_in!r}",
            where=_name(place),
            fix="a mapping from layers, such as load_dictionaries({12: ...})",
        ) from error


def _name(place: Place) -> str:
    return f"a {type(place).__name__}" if isinstance(place, Dictionary | CrossLayerTranscoder) else str(place)
