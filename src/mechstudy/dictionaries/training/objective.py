"""The reconstruction loss of one decoder, and its gradients at features and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mechstudy.dictionaries.codes import Codes
from mechstudy.dictionaries.weights import Scratch


@runtime_checkable
class Objective(Protocol):
    """A step's reconstruction loss: `Reconstruction`, or `cross_layer.CrossLayer`."""

    scale: float
    error: Tensor
    d_values: Tensor

    @property
    def felt(self) -> Tensor:
        """See `Reconstruction`."""

    def project(self, codes: Codes) -> Tensor:
        """See `Reconstruction`."""

    def decoder_gradient(self, dec: Tensor, unit: bool, scratch: Scratch, squares: dict[str, Tensor]) -> Tensor:
        """See `Reconstruction`."""


class Reconstruction:
    """The mean, over prefixes of the features, of the mean squared error per coordinate.

    error [N, d_out]: of the whole dictionary. ``felt`` [N, d_out] times ``scale`` is dL/dy_hat at b_dec and the skip
    path; features of part m get the sum over all prefixes that hold them. d_values: entries of dL/df.

    Args:
        codes: of the batch.
        dec_FD: the decoder, in the products' dtype.
        rest_ND: b_dec + skip path - target.
        prefixes: rising numbers of features, the last one F.
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
        """Gradient dL/dy_hat / scale [N, d_out] at b_dec and the skip path."""
        return self._felt[0]

    def project(self, codes: Codes) -> Tensor:
        """Entries <dL/dy_hat at feature f in row n, dec[f]>."""
        if len(self._prefixes) == 1:
            return codes.products(self.felt, self._dec).mul_(self.scale)
        parts = self._parts if codes is self._codes else codes.split(self._prefixes)
        entries = torch.empty_like(codes.values)
        for (part, where), felt, rows in zip(parts, self._felt, self._tables(self._dec), strict=True):
            entries[where] = part.products(felt, rows).mul_(self.scale)
        return entries

    def decoder_gradient(self, dec: Tensor, unit: bool, scratch: Scratch, squares: dict[str, Tensor]) -> Tensor:
        """dL/d dec [F, d_out] without components along unit rows; squared lengths of its rows into ``squares``."""
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
