"""Activations and explanations of features in the files of EleutherAI's delphi, which explains and scores them.

``latents/<module>/<first>_<last>.safetensors`` holds ``locations`` [n, 3] (document, position, feature - first),
``activations`` [n] in float16 and ``tokens`` [documents, context]; ``config.json`` beside it says where the text is
from. ``explanations/<module>_latent<feature>.txt`` is a JSON string. delphi calls a feature a latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.numpy import save_file
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import write_json_atomic
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.models.families import Family
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

LATENTS, EXPLANATIONS = "latents", "explanations"
_SMALLEST = 1e-5  # magnitude of an activation that is written, as there


def module_name(site: str, family: Family) -> str:
    """The module whose output a site is, in the model's own words: ``layers.13.mlp``; other sites keep their name."""
    kind, _, layer = site.partition(".")
    modules = {
        "resid_post": "",
        "mlp_out": f".{family.norm_mlp_post or family.mlp}",
        "attn_out": f".{family.norm_attn_post or family.attn}",
    }
    return f"{family.blocks}.{layer}{modules[kind]}" if kind in modules else site


@torch.no_grad()
def write_delphi(
    folder: Path,
    model: LanguageModel,
    bases: Mapping[int, Basis],
    chosen: Mapping[int, Sequence[int]],
    token_rows_BT: Int[Tensor, "b t"],
    explanations: Mapping[tuple[int, int], str],
    config: Mapping[str, Any],
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[str]:
    """Write all activations of chosen features on some documents, and their explanations.

    Activations are computed in one pass of the model. First positions count as silent, as on feature pages; magnitudes
    of at most 1e-5 are left out, as delphi does.

    Args:
        folder: takes ``latents`` and ``explanations``.
        model: the model.
        bases: dictionary or neurons of each layer.
        chosen: features of each layer; the others of a dictionary are not in the files.
        token_rows_BT: documents of equal length.
        explanations: (layer, feature) -> its explanation; features without one have no file.
        config: fields of ``config.json`` beside those on lengths: ``model_name``, ``dataset_repo`` and so on.
        batch_tokens: tokens of a forward pass.
        progress: receives progress.

    Returns:
        The names of the modules, in the order of layers.

    Raises:
        MechstudyError: two layers' features would be of one module.
    """
    layers = sorted(chosen)
    modules = {layer: module_name(bases[layer].sites_out[0], model.arch) for layer in layers}
    if len(set(modules.values())) < len(layers):
        raise MechstudyError(f"two layers' features write one module: {', '.join(modules.values())}")
    sites = {layer: Site.parse(bases[layer].cfg.site_in) for layer in layers}
    found: dict[int, list[tuple[Int[Tensor, "n 3"], Float[Tensor, " n"]]]] = {layer: [] for layer in layers}
    size = max(1, batch_tokens // token_rows_BT.shape[1])
    with (progress or NullProgress()).bar("activations", token_rows_BT.numel(), "tokens") as bar:
        for first in range(0, len(token_rows_BT), size):
            part = token_rows_BT[first : first + size]
            output = model.forward(part, capture=list(sites.values()), stop_after=max(layers), logits_at=None)
            for layer in layers:
                found[layer].append(_active(bases[layer], chosen[layer], output.activations[sites[layer]], first))
            bar.advance(part.numel())
    tokens = token_rows_BT.numpy().astype(np.int64)
    lengths = {"cache_ctx_len": tokens.shape[1], "n_tokens": tokens.size, "n_splits": 1}
    for layer in layers:
        place = folder / LATENTS / modules[layer]
        place.mkdir(parents=True, exist_ok=True)
        locations, activations = (torch.cat(parts).numpy() for parts in zip(*found[layer], strict=True))
        small = not locations.size or locations.max() < 1 << 16
        content = {
            "locations": locations.astype(np.uint16 if small else np.uint32),
            "activations": activations.astype(np.float16),
            "tokens": tokens,
        }
        save_file(content, place / f"0_{bases[layer].cfg.d_sae - 1}.safetensors")
        write_json_atomic(place / "config.json", {**config, **lengths})
    (folder / EXPLANATIONS).mkdir(parents=True, exist_ok=True)
    for (layer, feature), text in explanations.items():
        write_json_atomic(folder / EXPLANATIONS / f"{modules[layer]}_latent{feature}.txt", text, indent=None)
    return list(modules.values())


def _active(
    basis: Basis, features: Sequence[int], x_BTD: Tensor, first: int
) -> tuple[Int[Tensor, "n 3"], Float[Tensor, " n"]]:
    """Where features of a batch are active, and how strongly."""
    x = x_BTD.to(basis.b_enc)
    acts_BTn = basis.encode(x.flatten(0, 1))[:, list(features)].view(*x.shape[:2], -1).float().cpu()
    acts_BTn[:, 0] = 0
    at = (acts_BTn.abs() > _SMALLEST).nonzero()
    locations = torch.stack([at[:, 0] + first, at[:, 1], torch.tensor(list(features))[at[:, 2]]], 1)
    return locations, acts_BTn[at[:, 0], at[:, 1], at[:, 2]]
