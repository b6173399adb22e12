"""Normalisation statistics, and initial weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.architectures.cross_layer import n_pairs
from mechstudy.dictionaries.config import RECONSTRUCTING
from mechstudy.dictionaries.sizes import SAMPLE_ROWS
from mechstudy.dictionaries.weights import Weights

RIDGE = 1e-3  # ridge penalty, as a share of the mean input variance
TRANSCODER_DECODER_NORM = 0.1  # length of decoder rows at the start; 1.0 cost .01-.02 of R2 (SmolLM2 layer 3)


@dataclass
class Normalisation:
    """x -> (x - mean_in) / scale_in, y -> (y - mean_out) / scale_out, so that E||x||^2 = d_in, E||y||^2 = d_out.

    If rows hold several sites side by side, spread_in and spread_out are the scale of each column's site over the scale
    of all, so that every site has the same weight.
    """

    mean_in: Tensor
    scale_in: float
    mean_out: Tensor
    scale_out: float
    spread_in: Tensor | None = None
    spread_out: Tensor | None = None

    def apply(self, x_ND: Tensor, y_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise a batch. If y is x (an SAE), the results are one tensor too."""
        x = (x_ND - self.mean_in).mul_(1.0 / self.scale_in)
        if self.spread_in is not None:
            x /= self.spread_in
        if y_ND is x_ND:
            return x, x
        y = (y_ND - self.mean_out).mul_(1.0 / self.scale_out)
        return x, (y if self.spread_out is None else y.div_(self.spread_out))

    def fold(self, weights: Weights) -> Weights:
        """The weights that compute on raw rows what `weights` compute on normalised ones.

        Feature values are multiplied by scale_out (so thresholds are too) and decoder rows keep their length.
        """
        ratio = self.scale_out / self.scale_in
        enc, dec, b_dec = weights.enc * ratio, weights.dec.clone(), self.scale_out * weights.b_dec
        if self.spread_in is not None:
            enc /= self.spread_in
        if self.spread_out is not None:
            dec, b_dec = dec * self.spread_out, b_dec * self.spread_out
        b_dec = b_dec + self.mean_out
        skip = None
        if weights.skip is not None:
            skip = weights.skip * ratio
            b_dec = b_dec - skip @ self.mean_in
        b_enc = self.scale_out * weights.b_enc - enc @ self.mean_in
        return Weights(enc, b_enc, dec, b_dec, skip)


@dataclass
class Moments:
    """Sums over the first batches: means, variances and, for the skip path, the regression's matrices."""

    n_rows: int
    normalisation: Normalisation
    sample: Tensor  # [at most SAMPLE_ROWS, d_in]: normalised inputs of the first batch
    covariance: Tensor | None  # [d_in, d_in] of normalised inputs
    cross: Tensor | None  # [d_in, d_out] of normalised inputs and targets

    @property
    def mean_to_spread(self) -> float:
        """Length of the mean input over the inputs' root mean squared distance from it."""
        norm = self.normalisation
        return float(torch.linalg.vector_norm(norm.mean_in)) / (norm.scale_in * math.sqrt(len(norm.mean_in)))


def measure(batches: Iterable[tuple[Tensor, Tensor]], *, n_rows: int, with_cross: bool, n_sites: int = 1) -> Moments:
    """Read batches until they hold `n_rows` rows or end; float64 sums.

    Args:
        batches: (inputs, targets).
        n_rows: rows to read.
        with_cross: also sum the matrices of the skip path's regression.
        n_sites: sites of equal width that the rows hold side by side; each is scaled by itself.

    Raises:
        MechstudyError: there are no rows, or all of them are equal.
    """
    n_read = 0
    origin: tuple[Tensor, Tensor] | None = None
    sample = torch.zeros(0)
    sum_in, sum_out, square_in, square_out = (torch.zeros(()) for _ in range(4))
    covariance: Tensor | None = None
    cross: Tensor | None = None
    for x, y in batches:
        if origin is None:  # subtracting a first mean keeps the float32 products of large offsets accurate
            origin, sample = (x.double().mean(0), y.double().mean(0)), x[:SAMPLE_ROWS].cpu().clone()
            sum_in, sum_out = torch.zeros_like(origin[0]), torch.zeros_like(origin[1])
            square_in, square_out = torch.zeros_like(origin[0]), torch.zeros_like(origin[1])
        dx, dy = x.double() - origin[0], y.double() - origin[1]
        sum_in, sum_out = sum_in + dx.sum(0), sum_out + dy.sum(0)
        square_in, square_out = square_in + dx.square().sum(0), square_out + dy.square().sum(0)
        if with_cross:
            fx, fy = dx.float(), dy.float()
            covariance = (fx.T @ fx).double() + (0 if covariance is None else covariance)
            cross = (fx.T @ fy).double() + (0 if cross is None else cross)
        n_read += len(x)
        if n_read >= n_rows:
            break
    if origin is None or n_read < 2:
        raise MechstudyError("there are no activation rows to train on", facts={"rows": str(n_read)})
    shift_in, shift_out = sum_in / n_read, sum_out / n_read
    scale_in, spread_in = _scale(square_in / n_read - shift_in.square(), n_sites, "input")
    scale_out, spread_out = _scale(square_out / n_read - shift_out.square(), n_sites, "target")
    normalisation = Normalisation(
        (origin[0] + shift_in).float(), scale_in, (origin[1] + shift_out).float(), scale_out, spread_in, spread_out
    )
    sample = (sample - normalisation.mean_in.cpu()) / scale_in
    if spread_in is not None:
        sample /= spread_in.cpu()
    if covariance is not None and cross is not None:
        covariance = (covariance / n_read - torch.outer(shift_in, shift_in)) / scale_in**2
        cross = (cross / n_read - torch.outer(shift_in, shift_out)) / (scale_in * scale_out)
    return Moments(n_read, normalisation, sample, covariance, cross)


def _scale(variance_D: Tensor, n_sites: int, what: str) -> tuple[float, Tensor | None]:
    """Root mean variance of all columns, and of each column's site over it (None for one site)."""
    by_site = variance_D.view(n_sites, -1).mean(1)
    for site, variance in enumerate(by_site.tolist()):
        if not variance > 0:
            raise MechstudyError(
                f"all {what} rows are equal, so there is nothing to learn",
                where=f"site {site} of {n_sites}" if n_sites > 1 else "",
                facts={"variance": f"{variance:.3g}"},
                fix="check the captured site: was it ablated, or is the corpus one token repeated?",
            )
    scale = math.sqrt(float(by_site.mean()))
    if n_sites == 1:
        return scale, None
    spread = (by_site.sqrt() / scale).float()
    return scale, spread.repeat_interleave(len(variance_D) // n_sites)


def initial_weights(
    kind: str, n_features: int, d_in: int, d_out: int, moments: Moments, generator: torch.Generator, n_sites: int = 1
) -> Weights:
    """Weights in the normalised space, on the CPU; the same for the same generator.

    Encoder rows are random unit vectors, so pre-activations start with unit variance. An SAE's decoder is a copy of its
    encoder. A transcoder's decoder starts short and random, and its skip path at the ridge regression of target on
    input, so that features learn what a linear map cannot do. b_dec is zero, the mean. A cross-layer transcoder's
    encoder is [F, d_in / n_sites], and its decoder one matrix per pair of sites.
    """
    enc = torch.randn(n_features, d_in // n_sites if kind == "clt" else d_in, generator=generator)
    enc /= torch.linalg.vector_norm(enc, dim=1, keepdim=True)
    if kind in RECONSTRUCTING:
        dec = enc.clone()
    else:
        shape = (n_features, d_out)
        if kind == "clt":
            shape = (n_pairs(n_sites), n_features // n_sites, d_out // n_sites)  # type: ignore[assignment]
        dec = torch.randn(shape, generator=generator)
        dec *= TRANSCODER_DECODER_NORM / torch.linalg.vector_norm(dec, dim=-1, keepdim=True)
    skip = None
    if kind == "skip_transcoder":
        assert moments.covariance is not None and moments.cross is not None
        ridge = RIDGE * torch.eye(d_in, dtype=torch.float64, device=moments.covariance.device)
        solution = torch.linalg.solve(moments.covariance + ridge, moments.cross)
        skip = solution.T.float().cpu().contiguous()
    return Weights(enc, torch.zeros(n_features), dec, torch.zeros(d_out), skip)
