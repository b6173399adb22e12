"""A cross-layer transcoder's encoder and decoder (Ameisen et al. 2025, "circuit tracing").

Features of layer l read the input of layer l and write to the targets of layers l, l+1, ..., L-1:

    y_hat_m = b_dec_m + sum over l <= m of f_l @ dec[l, m]

The features of all layers are side by side, [N, L F], layer after layer, so sparsity is chosen over all of them
together. Rows hold the sites side by side too: x [N, L d_in], y [N, L d_out].
"""

from __future__ import annotations

import torch
from torch import Tensor

from mechstudy.dictionaries.codes import Codes
from mechstudy.dictionaries.weights import Scratch


def n_pairs(n_sites: int) -> int:
    """Number of decoder matrices: pairs (l, m) with l <= m."""
    return n_sites * (n_sites + 1) // 2


def pair(n_sites: int, source: int, target: int) -> int:
    """Index of decoder (source, target) among the pairs, which are ordered by source."""
    return source * n_sites - source * (source - 1) // 2 + target - source


def encode(x_ND: Tensor, enc_FD: Tensor, b_enc_F: Tensor, n_sites: int, out_NF: Tensor) -> None:
    """Pre-activations [N, L F] of x [N, L d_in] by enc [L F, d_in], into ``out_NF``."""
    width, features = enc_FD.shape[1], len(enc_FD) // n_sites
    for site in range(n_sites):
        here = slice(site * features, (site + 1) * features)
        x = x_ND[:, site * width : (site + 1) * width]
        out_NF[:, here] = torch.addmm(b_enc_F[here], x, enc_FD[here].T)


class CrossLayer:
    """The reconstruction loss of a cross-layer transcoder; see `objective.Objective`.

    Args:
        codes: of [N, L F].
        dec: [pairs, F, d_out].
        rest_ND: b_dec - target, [N, L d_out].
        n_sites: L.
        n_rows: rows of the whole batch.
    """

    def __init__(self, codes: Codes, dec: Tensor, rest_ND: Tensor, n_sites: int, n_rows: int) -> None:
        self._codes, self._dec, self._sites = codes, dec, n_sites
        self.scale = 2.0 / (n_rows * rest_ND.shape[1])
        self._bounds = tuple(dec.shape[1] * (site + 1) for site in range(n_sites))
        self._parts = codes.split(self._bounds)
        self._errors = [part.contiguous() for part in rest_ND.chunk(n_sites, 1)]
        for target in range(n_sites):
            for source in range(target + 1):
                self._errors[target] += self._parts[source][0].times(dec[pair(n_sites, source, target)])
        self.error = self.felt = torch.cat(self._errors, 1)
        self.d_values = self.project(codes)

    def project(self, codes: Codes) -> Tensor:
        """Entries of dL/df: the sum over a feature's targets of <gradient there, decoder row>."""
        parts = self._parts if codes is self._codes else codes.split(self._bounds)
        entries = torch.empty_like(codes.values)
        for source, (part, where) in enumerate(parts):
            total = torch.zeros_like(part.values)
            for target in range(source, self._sites):
                total += part.products(self._errors[target], self._dec[pair(self._sites, source, target)])
            entries[where] = total.mul_(self.scale)
        return entries

    def decoder_gradient(self, dec: Tensor, unit: bool, scratch: Scratch, squares: dict[str, Tensor]) -> Tensor:
        """Gradient dL/d dec [pairs, F, d_out]."""
        assert not unit, "decoder rows of a cross-layer transcoder have no fixed length"
        out = scratch.buffer("gradient of dec", tuple(dec.shape), dec.dtype, dec.device)
        lengths = []
        for source, (part, _) in enumerate(self._parts):
            entries = part.values * self.scale
            for target in range(source, self._sites):
                felt = self._errors[target].to(self._dec.dtype)
                lengths.append(part.gradient_rows(entries, felt, out[pair(self._sites, source, target)]))
        squares["dec"] = torch.cat(lengths)
        return out


def encoder_gradient(codes: Codes, entries: Tensor, x_ND: Tensor, n_sites: int, out_FD: Tensor) -> Tensor:
    """Write dL/d enc [L F, d_in] into ``out_FD``; squared lengths of its rows."""
    width, features = out_FD.shape[1], len(out_FD) // n_sites
    parts = codes.split(tuple(features * (site + 1) for site in range(n_sites)))
    lengths = [
        part.gradient_rows(
            entries[where],
            x_ND[:, site * width : (site + 1) * width].contiguous(),
            out_FD[site * features : (site + 1) * features],
        )
        for site, (part, where) in enumerate(parts)
    ]
    return torch.cat(lengths)


def decoder_norms(dec: Tensor, n_sites: int) -> Tensor:
    """Length of each feature's decoder rows, all targets together, [L F]."""
    squares = dec.square().sum(2)
    per_site = [
        squares[pair(n_sites, site, site) : pair(n_sites, site, n_sites - 1) + 1].sum(0) for site in range(n_sites)
    ]
    return torch.cat(per_site).sqrt()


def scale_rows(numbers_F: Tensor, dec: Tensor, n_sites: int) -> Tensor:
    """Decoder rows [pairs, F, d_out] times one number per feature [L F]."""
    by_site = numbers_F.view(n_sites, -1)
    sources = torch.tensor([source for source in range(n_sites) for _ in range(source, n_sites)], device=dec.device)
    return dec * by_site[sources][:, :, None]
