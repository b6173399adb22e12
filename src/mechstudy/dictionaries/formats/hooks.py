"""Names that other tools have for sites: TransformerLens' hooks, and modules of Hugging Face's models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mechstudy.core.errors import MechstudyError
from mechstudy.models import hub
from mechstudy.models.families import FAMILIES, Family
from mechstudy.models.sites import Site

HOOKPOINT = "hookpoint"  # in metadata: the module of the model's own code whose output the file says it is of
_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_in": "mlp.hook_in",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
}
_MLP_HOOK = "mlp.hook_out"
_TYPE = re.compile(r"([a-z_]*[a-z])_?(\d*)(?:_text)?")
_TYPES = [found.groups() for family in FAMILIES for known in family.model_types if (found := _TYPE.fullmatch(known))]
_NUMBERED = {stem for stem, number in _TYPES if number}
_RESIDUAL = re.compile(r"(resid_(?:pre|mid|post))_(?:layer_)?(\d+)")
_LAYER = re.compile(rf"(?:(?:^|\.)(?:blocks|layers|h)\.|^layer |^(?:{'|'.join(_HOOKS)})\.)(\d+)(?![^. ])")
_HEAD = re.compile(r"(.+) head (\d+)")
_MODULE = re.compile(
    r"(?:(?:model|transformer|gpt_neox|language_model)\.)*(?:layers|h)\.(\d+)(?:\.(?!input|output)([\w.]+?))?(?:\.(input|output))?"
)


def hook_name(site: str) -> str:
    """TransformerLens' name of a site: "mlp_out.3" -> "blocks.3.hook_mlp_out"; other text stays as it is."""
    kind, _, layer = str(site).partition(".")
    return f"blocks.{layer}.{_HOOKS[kind]}" if kind in _HOOKS and layer.isdigit() else str(site)


def site_name(hook: str, model: str = "") -> str:
    """Inverse of `hook_name`, and dictionary_learning's ``resid_post_layer_3``; other text stays as it is.

    circuit-tracer's ``mlp.hook_out`` is the module's own output, as in `module_site`: it stays its name where the
    ``model`` norms it before adding it.
    """
    if named := _RESIDUAL.fullmatch(hook):
        return f"{named[1]}.{named[2]}"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    kinds = {name: kind for kind, name in _HOOKS.items()}
    if match is not None and match[2] == _MLP_HOOK:
        return hook if norm_after("mlp_out", model) else f"mlp_out.{match[1]}"
    if match is None or match[2] not in kinds:
        return hook
    return f"{kinds[match[2]]}.{match[1]}"


def is_before_weight(site: str) -> bool:
    """Whether a name is TransformerLens' of what the MLP's norm gives before its weight: no site, see `fitted`."""
    return re.fullmatch(r"blocks\.\d+\.ln2\.hook_normalized", site) is not None


def clt_site(kind: str, layer: int) -> str:
    """The name of a cross-layer transcoder's site at a layer: ``mlp_in.3``, or TransformerLens' of another hook."""
    return f"blocks.{layer}.{kind}" if "hook_" in kind else f"{kind}.{layer}"


def layer_of(site: str) -> int:
    """The layer of a site's name, or of `is_before_weight`'s.

    Raises:
        MechstudyError: it is neither.
    """
    return int(site.split(".")[1]) if is_before_weight(site) else Site.parse(site).layer


def at_layer(site: str, layer: int) -> str:
    """The site of the same kind at a layer: ``mlp_in.16`` at 12 is ``mlp_in.12``; other text stays as it is."""
    kind = site.partition(".")[0]
    return f"{kind}.{layer}" if kind in _HOOKS else site


def check_layer(site: str, layer: int, place: Path | str, *, where: str | None = None) -> None:
    """Refuse a dictionary that somebody gives as one layer's while its site names another, in any tool's words.

    Args:
        site: what the dictionary reads, by its own files.
        layer: that it is given as.
        place: the dictionary's folder or file. A number in a file's name is its layer only after ``layer``.
        where: the field that gives the layer.

    Raises:
        MechstudyError: the site names another layer.
    """
    own = _LAYER.search(site)
    name = Path(place).stem if Path(place).suffix == ".safetensors" else ""
    guessed = re.search(r"\d", name) is not None and re.search(r"layers?[_. -]?\d", name) is None
    if own is None or int(own[1]) == layer or guessed:
        return
    raise MechstudyError(
        f"the dictionary is of layer {own[1]}, and is given as layer {layer}'s",
        where=where,
        facts={"dictionary": str(place), "reads": site},
        fix=f"{{{own[1]}: ...}}, or the dictionary of layer {layer}",
    )


def check_one_layer(site_in: str, site_out: str, place: Path | str, *, where: str | None = None) -> None:
    """Refuse a dictionary that reads one layer and writes another, which only cross-layer transcoders do.

    Args:
        site_in: what it reads, in any tool's words.
        site_out: what it writes.
        place: its folder or file.
        where: the field that names it.

    Raises:
        MechstudyError: the two sites name different layers.
    """
    layers = [_LAYER.search(site) for site in (site_in, site_out)]
    if layers[0] is None or layers[1] is None or layers[0][1] == layers[1][1]:
        return
    raise MechstudyError(
        f"the dictionary reads layer {layers[0][1]} and writes layer {layers[1][1]}",
        where=where,
        facts={"dictionary": str(place), "reads": site_in, "writes": site_out},
        fix="a dictionary of one layer, or a whole cross-layer transcoder",
    )


def config_hook(text: str) -> str:
    """A hook of a set's config.yaml inside its block; some tools write the block before it: ``blocks.{layer}.NAME``."""
    return re.sub(r"^blocks\.\{\w*\}\.", "", text)


def with_head(site: str, head: int | None) -> str:
    """The site of one attention head's slice: "blocks.1.attn.hook_z head 3"; without a head, the site itself."""
    return site if head is None else f"{site} head {head}"


def split_head(site: str) -> tuple[str, int | None]:
    """Inverse of `with_head`."""
    match = _HEAD.fullmatch(site)
    return (match[1], int(match[2])) if match else (site, None)


def module_site(module: str, model: str = "") -> str:
    """The site of a Hugging Face module's output, such as ``layers.3.mlp``; other names stay as they are.

    `mlp_out` and `attn_out` are what is added to the residual stream. Where a family norms the output of the module
    first, the module's own output is another tensor, and its name stays. The norms themselves are sites too, under
    their family's names: ``post_attention_layernorm`` stands after attention in Gemma 2, and before the MLP in Llama
    and GLM-4. If the model is not known, that name stays.

    Args:
        module: a name within the model, perhaps with ``.output`` behind it (``.input`` is another tensor).
        model: the model's name or folder; "" if it is not known.
    """
    match = _MODULE.fullmatch(module)
    if match is None or match[3] == "input":
        return site_name(module)
    layer, part = match[1], match[2]
    family = _family(model)
    kinds: dict[str | None, str] = {None: "resid_post"}
    if family is None:
        kinds |= {"pre_feedforward_layernorm": "mlp_in", "post_feedforward_layernorm": "mlp_out"}
    else:
        norms = {family.norm_mlp: "mlp_in", family.norm_attn_post: "attn_out", family.norm_mlp_post: "mlp_out"}
        kinds |= {norm: kind for norm, kind in norms.items() if norm is not None}
    if family is None or family.norm_mlp_post is None:
        kinds |= {"mlp": "mlp_out", "attn": "attn_out", "self_attn": "attn_out", "attention": "attn_out"}
    return f"{kinds[part]}.{layer}" if part in kinds else module


def named_module(module: str) -> dict[str, str]:
    """The metadata of a dictionary of a block's MLP or attention module, whose output some families norm."""
    return {} if _module_kind(module) is None else {HOOKPOINT: module}


def written_hook(site: str, metadata: Mapping[str, Any]) -> str:
    """What circuit-tracer's config.yaml calls a transcoder's output: the MLP's own, where its files were of that."""
    return _MLP_HOOK if _module_kind(str(metadata.get(HOOKPOINT))) == "mlp" else site


def norm_between(module: str, family: Family) -> str | None:
    """The norm between a module's own output and what its block adds; None where there is none, or no such module."""
    return {"mlp": family.norm_mlp_post, "attn": family.norm_attn_post}.get(_module_kind(module) or "")


def _module_kind(module: str) -> Literal["mlp", "attn"] | None:
    """Which module's own output a name is, in Hugging Face's words or circuit-tracer's."""
    if re.fullmatch(rf"blocks\.\d+\.{re.escape(_MLP_HOOK)}", module):
        return "mlp"
    match = _MODULE.fullmatch(module)
    if match is None or match[3] == "input":
        return None
    return "mlp" if match[2] == "mlp" else "attn" if match[2] in ("attn", "self_attn", "attention") else None


def norm_after(kind: str, model: str) -> str | None:
    """The module whose output is `mlp_out` or `attn_out` in a family that norms them (Gemma 2 and 3); None in others.

    Args:
        kind: of the site.
        model: a folder, or ``owner/name``; its config.json is read where it is here, else the name decides.
    """
    family = _family(model)
    if family is None:
        return None
    return {"mlp_out": family.norm_mlp_post, "attn_out": family.norm_attn_post}.get(kind)


def _family(model: str) -> Family | None:
    """The family of a folder or ``owner/name``; None if it is not known."""
    model_type = _model_type(model)
    for family in FAMILIES:
        for known in family.model_types:
            same = model_type in (known, known.removesuffix("_text"))
            if same or (model_type is None and _names(known, model)):
                return family
    return None


def _names(model_type: str, model: str) -> bool:
    """Whether a model's name contains a model type: "gemma2" is in "gemma-2-2b", and not in "gemma-2b".

    A type without a number is not in a name with one where numbered types stand beside it: "gemma" and "gemma-3".
    """
    parts = _TYPE.fullmatch(model_type)
    if parts is None:
        return False
    stem, number = parts.groups()
    end = r"(?![0-9a-z])"
    if not number and stem in _NUMBERED:
        end += r"(?![-_ ]?\d+(?![0-9a-z]))"
    pattern = stem.replace("_", "[-_ ]?") + (f"[-_ ]?{number}" if number else "") + end
    return re.search(r"(?<![a-z])" + pattern, model.lower()) is not None


def _model_type(model: str) -> str | None:
    """``model_type`` of a folder's config.json, or of a cached snapshot's; None if there is none here."""
    folders = [Path(model)] if model else []
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and (cached := hub.partial_folder(model)) is not None:
        folders.append(cached)
    for folder in folders:
        try:
            content = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and isinstance(content.get("model_type"), str):
            return str(content["model_type"])
    return None
