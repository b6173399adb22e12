"""Reading a crosscoder (Lindsey et al. 2024): an SAE over several sites side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary


def decoder_by_site(dictionary: Dictionary) -> Tensor:
    """[F, n_sites, d]: what each feature writes to each site.

    Raises:
        MechstudyError: the dictionary reads one site.
    """
    n_sites = dictionary.n_sites
    if n_sites < 2:
        raise MechstudyError("this dictionary reads one site", fix="train with kind: crosscoder and n_sites")
    return dictionary.W_dec.view(len(dictionary.W_dec), n_sites, -1)


def relative_norms(dictionary: Dictionary) -> Tensor:
    """[F, n_sites]: each site's share of a feature's decoder length; rows sum to 1.

    About 1 / n_sites everywhere: a shared feature; about 1 at one site: that site's own. Lengths are taken where every
    site has the scale that training gave it, so that a site with large activations does not own every feature.
    """
    norms = torch.linalg.vector_norm(decoder_by_site(dictionary), dim=2)
    scales = dictionary.metadata.get("site_scales")
    if scales is not None:
        norms = norms / torch.tensor(scales, dtype=norms.dtype, device=norms.device)
    return norms / norms.sum(1, keepdim=True).clamp_min(1e-30)
