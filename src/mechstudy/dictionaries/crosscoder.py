"""Which site a crosscoder's feature belongs to (Lindsey et al. 2024: an SAE over several sites side by side)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary


def decoder_by_site(dictionary: Dictionary) -> Float[Tensor, "f n_sites d"]:
    """Decoder rows by site [F, n_sites, d].

    Raises:
        MechstudyError: the dictionary reads one site.
    """
    n_sites = dictionary.n_sites
    if n_sites < 2:
        raise MechstudyError("this dictionary reads one site", fix="train with kind: crosscoder and n_sites")
    return dictionary.W_dec.view(len(dictionary.W_dec), n_sites, -1)


def relative_norms(dictionary: Dictionary) -> Float[Tensor, "f n_sites"]:
    """Each site's share of a feature's decoder length [F, n_sites]; rows sum to 1.

    A feature with about 1 / n_sites everywhere is shared; one with about 1 at a site belongs to it. Lengths are
    relative to the sites' scales in training: otherwise a site with large activations would own every feature.
    """
    norms: Tensor = torch.linalg.vector_norm(decoder_by_site(dictionary), dim=2)
    scales = dictionary.metadata.get("site_scales")
    if scales is not None:
        norms = norms / torch.tensor(scales, dtype=norms.dtype, device=norms.device)
    return norms / norms.sum(1, keepdim=True).clamp_min(1e-30)
