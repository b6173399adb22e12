"""The reconstruction loss of one decoder, and what it sends back to features and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mechstudy.dictionaries.codes import Codes
from mechstudy.dictionaries.training.scratch import Scratch


class Objective(Protocol):
    """What a step needs of its loss: see `Reconstruction`; `cross_layer.CrossLayer` is the other one."""

    scale: float
    error: Tensor
    d_values: Tensor

    @property
    def felt(self) -> Tensor: ...

    def project(self, codes: Codes) -> Tensor: ...

    def decoder_gradient(self, dec: Tensor, unit: bool, scratch: Scratch, squares: dict[str, Tensor]) -> Tensor: ...


class Reconstruction:
    """The mean, over prefixes of the features, of the mean squared error per coordinate.

    error [N, d_out]: of the whole dictionary. ``felt`` [N, d_out] times ``scale`` is dL/dy_hat as b_dec and the skip
    path feel it; features of part m feel the sum over all prefixes that hold them. d_values: entries of dL/df.

    Args:
        rest_ND: b_dec + skip path - target.
        n_rows: rows of the whole batch, of which these may be a part.
    """

    def __init__(self, codes: Codes, dec_FD: Tensor, rest_ND: Tensor, prefixes: Sequence[int], n_rows: int) -> None:
        self._codes, self._dec, self._prefixes = codes, dec_FD, tuple(prefixes)
        self.scale = 2.0 / (n_rows * rest_ND.shape[1] * len(self._prefixes))
        if len(self._prefixes) == 1:
            self.error, products = codes.reconstruct(dec_FD, rest_ND)
            self._felt = [self.error]
            self.d_values = products.mul_(self.scale)
            return
        self._parts = codes.split(self._prefixes)
        errors, error = [], rest_ND
        for (part, _), rows in zip(self._parts, self._tables(dec_FD), strict=True):
            error = part.times(rows).add_(error)
            errors.append(error)
        self.error = error
        self._felt = [error]
        for error in reversed(errors[:-1]):
            self._felt.insert(0, self._felt[0] + error)
        self.d_values = self.project(codes)

    @property
    def felt(self) -> Tensor:
        return self._felt[0]

    def project(self, codes: Codes) -> Tensor:
        """Entries <gradient felt by feature f in row n, dec[f]>."""
        if len(self._prefixes) == 1:
            return codes.products(self.felt, self._dec).mul_(self.scale)
        parts = self._parts if codes is self._codes else codes.split(self._prefixes)
        entries = torch.empty_like(codes.values)
        for (part, where), felt, rows in zip(parts, self._felt, self._tables(self._dec), strict=True):
            entries[where] = part.products(felt, rows).mul_(self.scale)
        return entries

    def decoder_gradient(self, dec: Tensor, unit: bool, scratch: Scratch, squares: dict[str, Tensor]) -> Tensor:
        """dL/d dec [F, d_out], without what lies along unit rows; squared lengths of its rows into ``squares``."""
        out = scratch.buffer("gradient of dec", tuple(dec.shape), dec.dtype, dec.device)
        parts = [(self._codes, slice(None))] if len(self._prefixes) == 1 else self._parts
        lengths = []
        for (part, _), felt, rows, directions in zip(
            parts, self._felt, self._tables(out), self._tables(dec), strict=True
        ):
            lengths.append(
                part.gradient_rows(
                    part.values * self.scale, felt.to(self._dec.dtype), rows, directions if unit else None
                )
            )
        squares["dec"] = torch.cat(lengths)
        return out

    def _tables(self, rows_FD: Tensor) -> list[Tensor]:
        return [rows_FD[low:high] for low, high in zip((0, *self._prefixes[:-1]), self._prefixes, strict=True)]
