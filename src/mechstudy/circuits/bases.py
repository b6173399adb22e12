"""Bases of graphs and interventions: which site a layer's nodes read and which they write."""

from __future__ import annotations

from collections.abc import Mapping

from mechstudy.circuits.config import SAE_SITES, BasisKind
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.hookpoints import refuse_other_tensor
from mechstudy.dictionaries.neurons import Basis, Neurons, with_neurons
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


def site_read(basis: Basis, layer: int) -> Site:
    """The site that the nodes of a layer read."""
    return Site(basis.cfg.site_in.partition(".")[0], layer)


def site_written(basis: Basis, layer: int) -> Site:
    """The site of their own layer that the nodes of a layer write."""
    return Site(basis.sites_out[0].partition(".")[0], layer)


def has_saes(bases: Mapping[int, Basis]) -> bool:
    """Whether some basis is a dictionary whose features read the site that they write."""
    return any(not isinstance(one, Neurons) and one.cfg.site_in == one.sites_out[0] for one in bases.values())


def chosen_bases(model: LanguageModel, dictionaries: Mapping[int, Basis], kind: BasisKind | None) -> dict[int, Basis]:
    """The bases of a kind: dictionaries, neurons, or neurons where there is no dictionary (``mixed``).

    None takes the dictionaries, or neurons where there are none.

    Raises:
        MechstudyError: dictionaries are asked for and there are none.
    """
    kind = kind or ("dictionaries" if dictionaries else "neurons")
    if kind == "dictionaries":
        if not dictionaries:
            raise MechstudyError("a graph of dictionaries needs some", fix="ms.load_dictionaries; or basis: neurons")
        return dict(dictionaries)
    return with_neurons(model, {} if kind == "neurons" else dictionaries, range(model.n_layers))


def neuron_layers(bases: Mapping[int, Basis]) -> list[int]:
    """The layers whose basis is neurons."""
    return sorted(layer for layer, basis in bases.items() if isinstance(basis, Neurons))


def check_bases(bases: Mapping[int, Basis], purpose: str, model: LanguageModel) -> None:
    """Refuse dictionaries that are of another site, layer or model.

    Transcoders read ``mlp_in`` or, without a skip path, ``resid_mid`` and write ``mlp_out``; SAEs are of one of
    `SAE_SITES`.

    Raises:
        MechstudyError: the first dictionary that is neither, or writes above the model's last layer, and that
            ``purpose`` (a plural) need another.
    """
    for layer, basis in bases.items():
        if isinstance(basis, Neurons):
            continue
        _check_sites(basis, layer, purpose, model)
        if int(basis.sites_out[-1].partition(".")[2]) >= model.n_layers:
            raise MechstudyError(
                f"layer {layer}: the cross-layer transcoder writes up to {basis.sites_out[-1]}, and the model has "
                f"{model.n_layers} layers",
                facts={"model": model.name},
                fix="one of this model",
            )
        refuse_other_tensor(model, basis)


def _check_sites(basis: Basis, layer: int, purpose: str, model: LanguageModel) -> None:
    site_in, site_out = basis.cfg.site_in, basis.sites_out[0]
    parallel = 0 <= layer < model.n_layers and model.blocks[layer].parallel
    no_mid = {"model": f"attention and MLP of {model.name} run in parallel: there is no resid_mid.{layer}"}
    reads, writes = ((kind, int(at or -1)) for kind, _, at in (site.partition(".") for site in (site_in, site_out)))
    if reads[1] == writes[1] == layer and not (parallel and reads[0] == "resid_mid"):
        if reads == writes and reads[0] in SAE_SITES:
            return
        skip = not isinstance(basis, Neurons) and basis.W_skip is not None
        if writes[0] == "mlp_out" and (reads[0] == "mlp_in" or (reads[0] == "resid_mid" and not skip)):
            return
    sites = f"maps {site_in} to {site_out}" if site_in != site_out else f"is of {site_in}"
    raise MechstudyError(
        f"layer {layer}: {purpose} need a transcoder from mlp_in.{layer} to mlp_out.{layer}, or an SAE of a site of "
        f"that layer; this dictionary {sites}",
        facts=({"sites": ", ".join(f"{kind}.{layer}" for kind in SAE_SITES)} if site_in == site_out else {})
        | (no_mid if parallel and reads[0] == "resid_mid" else {}),
        fix="an SAE of one of these sites, a transcoder, or basis: neurons, which needs no dictionary"
        if site_in == site_out
        else "dictionaries.architecture.kind: transcoder, skip_transcoder or sae; or dictionaries of this model",
    )
