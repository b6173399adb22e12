"""Published dictionaries that a study names with ``dictionaries.from``: where each layer's is, and what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechstudy import dictionaries
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import DictionaryConfig
from mechstudy.dictionaries.formats.hooks import check_layer, check_one_layer, clt_site, is_before_weight, layer_of
from mechstudy.dictionaries.hookpoints import refuse_normed_output
from mechstudy.models.families import family_of
from mechstudy.models.sites import SITES, parse_layers
from mechstudy.study import finished

if TYPE_CHECKING:
    from mechstudy.models.shapes import ModelShapes
    from mechstudy.study.study import DictionariesConfig, Study

FIELD = "dictionaries.from"
LAYERS = "dictionaries.layers"
_TYPICAL_K = 64  # where the activation has none
SAELENS = "saelens:"


@dataclass(frozen=True)
class Published:
    """One dictionary: its address, the folder or file it is read from, and what that says of itself.

    ``listed`` is the folder of the set whose config.yaml lists it. ``clt_layer`` is its layer in the cross-layer
    transcoder that it is part of.
    """

    layer: int
    address: str
    path: Path
    listed: Path | None
    sha256: str
    site_in: str
    site_out: str
    about: Mapping[str, Any]
    clt_layer: int | None = None

    @property
    def sites(self) -> str:
        """What it reads and writes, and whether that is only assumed: ``mlp_in.3 to mlp_out.3``."""
        text = self.site_in if self.site_in == self.site_out else f"{self.site_in} to {self.site_out}"
        assumed = bool(self.about.get("site_assumed")) and self.site_in == str(self.about["site_in"])
        return text + " (assumed)" * assumed

    @property
    def n_weights(self) -> int:
        """Numbers in its encoder and decoder."""
        return int(self.about["d_sae"]) * (int(self.about["d_in"]) + self.n_written * int(self.about["d_out"]))

    @property
    def n_written(self) -> int:
        """Layers that its features write to."""
        return 1 if self.clt_layer is None else int(self.about["n_layers"]) - self.clt_layer

    @property
    def n_evaluated(self) -> int:
        """Numbers in memory while it is judged: with a cross-layer transcoder, those of the layers below too."""
        if self.clt_layer is None:
            return self.n_weights
        n_read = self.clt_layer + 1
        n_written = sum(int(self.about["n_layers"]) - layer for layer in range(n_read))
        return int(self.about["d_sae"]) * (n_read * int(self.about["d_in"]) + n_written * int(self.about["d_out"]))


def published_dictionaries(config: DictionariesConfig, shapes: ModelShapes, base: Path) -> tuple[Published, ...]:
    """The dictionaries that a study uses, by layer in order.

    Args:
        config: with ``published`` set; ``layers`` selects among them.
        shapes: of the model they are for.
        base: the folder that relative addresses start from.

    Raises:
        MechstudyError: an address cannot be read, names no layer, or two name the same; a layer has none, or another
            width than the model. ``where`` is the field.
    """
    given = config.published
    assert given is not None
    addresses = (given,) if isinstance(given, str) else given
    listed: list[tuple[int | None, str]] = (
        [*addresses.items()] if isinstance(addresses, dict) else [(None, address) for address in addresses]
    )
    by_layer: dict[int, Published] = {}
    for layer, address in listed:
        for one in _read(address, base, layer, config.site if "site" in config.model_fields_set else None):
            if one.layer in by_layer:
                raise MechstudyError(
                    f"two dictionaries are of layer {one.layer}",
                    where=FIELD,
                    facts={"one": str(by_layer[one.layer].path), "the other": str(one.path)},
                    fix="name one of them: {LAYER: ADDRESS}",
                )
            _check(one, shapes, config)
            by_layer[one.layer] = one
    if config.layers == "all":
        return tuple(by_layer[layer] for layer in sorted(by_layer))
    wanted = layers_of(config.layers, shapes.n_layers, LAYERS)
    if missing := [layer for layer in wanted if layer not in by_layer]:
        raise MechstudyError(
            f"no dictionary of layer {missing[0]} is among them",
            where=FIELD,
            facts={"layers": ", ".join(map(str, sorted(by_layer)))},
            fix="dictionaries.layers: all, or some of these",
        )
    return tuple(by_layer[layer] for layer in wanted)


def with_published(study: Study, found: Sequence[Published]) -> Study:
    """The study with the layers, sites and sizes of its published dictionaries, which its costs are computed from."""
    kinds = {str(one.about["kind"]) for one in found}
    kind = next((kind for kind in ("sae", "skip_transcoder") if kind in kinds), "transcoder")
    d_sae = max(int(one.about["d_sae"]) for one in found)
    k = max((int(one.about["k"]) for one in found if one.about["k"]), default=min(_TYPICAL_K, d_sae))
    update = {
        "source": "published",
        "layers": tuple(one.layer for one in found),
        "architecture": DictionaryConfig(kind=kind, d_sae=d_sae, k=k),
        "site": found[0].site_in.partition(".")[0] if kind == "sae" else study.dictionaries.site,
    }
    return study.model_copy(update={"dictionaries": study.dictionaries.model_copy(update=update)})


def _read(address: str, base: Path, layer: int | None, site: str | None) -> Iterator[Published]:
    address = _saelens(address) if address.startswith(SAELENS) else address
    place: str | Path = address
    if not address.startswith("hf:"):
        place = (base / Path(address).expanduser()).resolve()
        if not place.exists():
            raise MechstudyError(
                f"there is no file or folder {place}",
                where=FIELD,
                fix="a path relative to the study file's folder, or hf:owner/name/folder@revision",
            )
    try:
        if isinstance(place, Path) and finished.is_run(place):
            places = finished.dictionary_places(finished.latest(place)).values()
            if not places:
                raise MechstudyError(
                    "this run has no dictionaries yet", where=str(place), fix="finish it: `mechstudy train` or `run`"
                )
            entries = [entry for one in places for entry in dictionaries.describe(one, mapped=True)]
        else:
            entries = dictionaries.describe(place, mapped=True)
    except MechstudyError as error:
        what = error.what if error.where is None else f"{error.what} ({error.where})"
        raise MechstudyError(what, where=FIELD, facts=error.facts, fix=error.fix) from error
    if layer is not None and len(entries) != 1:
        raise MechstudyError(
            f"{address} holds {len(entries)} dictionaries, and layer {layer} needs one",
            where=FIELD,
            fix="the folder of one",
        )
    for about in entries:
        if "n_layers" in about:
            yield from _of_clt(about, address, layer, site)
            continue
        path, listed = Path(about["place"]), about["listed"] and Path(about["listed"])
        check_one_layer(str(about["site_in"]), str(about["site_out"]), path, where=FIELD)
        at = _layer(about, layer)
        named = ("", "") if about["site_assumed"] and site else (str(about["site_in"]), str(about["site_out"]))
        site_in, site_out = (_site(name, site, at) for name in named)
        yield Published(at, address, path, listed, dictionaries.checksum(path, listed), site_in, site_out, about)


def _of_clt(about: Mapping[str, Any], address: str, layer: int | None, site: str | None) -> Iterator[Published]:
    """The layers of a cross-layer transcoder: all, or the one that the study or another run's record names."""
    path, n_layers = Path(about["place"]), int(about["n_layers"])
    only = about.get("layer") if layer is None else layer
    if only is not None and only >= n_layers:
        raise MechstudyError(
            f"{address} is a cross-layer transcoder of {n_layers} layers, and has no layer {only}",
            where=FIELD,
            facts={"layers": f"0-{n_layers - 1}"},
        )
    sha256 = dictionaries.checksum(path)
    for at in range(n_layers) if only is None else (only,):
        site_in, site_out = (_site(clt_site(str(about[name]), at), site, at) for name in ("site_in", "site_out"))
        yield Published(at, address, path, None, sha256, site_in, site_out, about, at)


def _layer(about: Mapping[str, Any], layer: int | None) -> int:
    if layer is not None:
        check_layer(str(about["site_in"]), layer, str(about["place"]), where=FIELD)
        return layer
    try:
        return layer_of(str(about["site_in"]))
    except MechstudyError:
        raise MechstudyError(
            f"the dictionary does not name its layer: it reads {about['site_in']!r}",
            where=FIELD,
            facts={"dictionary": str(about["place"])},
            fix="{LAYER: ADDRESS}",
        ) from None


def _site(named: str, site: str | None, layer: int) -> str:
    """The site of the kind that the files name, or the study where they do not."""
    kind = named.partition(".")[0]
    if kind in SITES:
        return f"{kind}.{layer}"
    if is_before_weight(named):
        return f"blocks.{layer}.ln2.hook_normalized"
    if site is None:
        raise MechstudyError(
            f"the dictionary reads {named!r}, which is no site of the model",
            where=FIELD,
            facts={"sites": " ".join(SITES)},
            fix="dictionaries.site: what it reads and writes",
        )
    return f"{site}.{layer}"


def layers_of(spec: Any, n_layers: int, where: str) -> tuple[int, ...]:
    """The layers that a field of the study names; its errors name the field."""
    try:
        return parse_layers(spec, n_layers)
    except MechstudyError as error:
        raise MechstudyError(error.what, where=where, facts=error.facts, fix=error.fix) from None


def _check(one: Published, shapes: ModelShapes, config: DictionariesConfig) -> None:
    if one.layer >= shapes.n_layers and config.layers != "all":
        layers_of(config.layers, shapes.n_layers, LAYERS)
        return  # a set of a larger model, of which the study names layers that this one has
    if one.layer >= shapes.n_layers:
        raise MechstudyError(
            f"the dictionary in {one.path.name} is of layer {one.layer}, which the model does not have",
            where=FIELD,
            facts={
                "model": f"{shapes.n_layers} layers of width {shapes.d_model}",
                "made for": str(one.about.get("model") or "not said"),
            },
            fix=f"dictionaries of this model; or dictionaries.layers: 0-{shapes.n_layers - 1}, if the others are",
        )
    facts = {"dictionary": str(one.path)}
    refuse_normed_output(
        one.about.get("hookpoint"), one.site_out, family_of(shapes.model_type), facts=facts, where=FIELD
    )
    for end, site in (("in", one.site_in), ("out", one.site_out)):
        kind = site.partition(".")[0]
        kind = "mlp_in" if kind not in SITES else kind
        width = shapes.width(kind)
        if one.about[f"d_{end}"] != width:
            raise MechstudyError(
                f"the dictionary of layer {one.layer} has width {one.about[f'd_{end}']} at {kind}, the model {width}",
                where=FIELD,
                facts={"dictionary": str(one.path), "made for": str(one.about.get("model") or "not said")},
                fix="dictionaries of this model",
            )


def _saelens(address: str) -> str:
    """The hub address of ``saelens:RELEASE/ID``, from the registry of the installed sae-lens."""
    try:
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    except ImportError:
        raise MechstudyError(
            f"{address} is an entry of SAELens' registry, and sae-lens is not installed",
            where=FIELD,
            fix="pip install sae-lens, or the repository itself: hf:owner/name/folder",
        ) from None
    release, _, name = address.removeprefix(SAELENS).partition("/")
    directory = get_pretrained_saes_directory()
    if release not in directory or name not in directory[release].saes_map:
        known = directory[release].saes_map if release in directory else directory
        raise MechstudyError(
            f"SAELens' registry has no {name if release in directory else release!r}",
            where=FIELD,
            facts={"known": ", ".join(list(known)[:8])},
            fix="saelens:RELEASE/ID",
        )
    return f"hf:{directory[release].repo_id}/{directory[release].saes_map[name]}"
