"""One training step's loss and gradients, written out by hand.

Autograd would keep and revisit dense [N, F] matrices. Here the reconstruction error g = dL/dy_hat reaches the
weights through active entries only:

    dW_dec[f] = sum_n f_nf g_n      df_nf = <g_n, W_dec[f]>      dW_enc[:, f] = sum_n du_nf x_n

and the architecture says how df becomes du. A test holds every line of this to autograd on the plain dense formula,
in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechstudy.dictionaries.architectures.base import Architecture, Context
from mechstudy.dictionaries.codes import Codes
from mechstudy.dictionaries.kernels import top_k
from mechstudy.dictionaries.kernels.reference import remove_parallel
from mechstudy.dictionaries.scratch import Scratch
from mechstudy.dictionaries.weights import Weights


@dataclass
class StepOutput:
    """What a step found.

    loss: mean squared error per coordinate of the whole dictionary (about FVU, as targets have unit variance);
    penalty and aux_loss: what else is minimised; error = y_hat - y; minimum: see `architectures.base.Encoded`;
    squares: squared lengths of the gradients' rows, [F] each, where they are known already.
    """

    loss: Tensor
    penalty: Tensor | None
    aux_loss: Tensor | None
    error_ND: Tensor
    codes: Codes
    minimum: float | None
    gradients: Weights
    squares: dict[str, Tensor] = field(default_factory=dict)


def loss_and_gradients(
    weights: Weights,
    x_ND: Tensor,
    y_ND: Tensor,
    architecture: Architecture,
    *,
    dense_dtype: torch.dtype,
    guess: float | None = None,
    prefixes: Sequence[int] = (),
    coefficient: float = 1.0,
    unit_decoder: bool = False,
    dead: Tensor | None = None,
    aux_k: int = 0,
    aux_alpha: float = 0.0,
    scratch: Scratch | None = None,
) -> StepOutput:
    """Loss, codes and gradients on one batch of normalised rows.

    Args:
        dense_dtype: of the factors in all products; sums are in the weights' dtype.
        guess: the last batch's ``minimum``.
        prefixes: Matryoshka: numbers of features, rising, the last one F; each prefix reconstructs by itself, and
            the loss is the mean over prefixes. None or one prefix is the plain dictionary.
        coefficient: of the architecture's sparsity penalty.
        unit_decoder: decoder rows have length one: the penalty need not know their length, and the gradient leaves
            out what lies along them.
        dead: indices of dead features, for the auxiliary loss; None or empty turns it off.
        scratch: of the training; the result then holds until the next step.
    """
    scratch = scratch or Scratch()
    x_dense = x_ND.to(dense_dtype)
    enc, dec = scratch.copy_of("enc", weights.enc, dense_dtype), scratch.copy_of("dec", weights.dec, dense_dtype)
    pre_NF = scratch.buffer("pre", (len(x_ND), len(enc)), dense_dtype, x_ND.device)
    torch.addmm(weights.b_enc.to(dense_dtype), x_dense, enc.T, out=pre_NF)
    encoded = architecture.encode(pre_NF, weights, guess, dense_dtype)
    codes = encoded.codes
    rest = weights.b_dec - y_ND
    if weights.skip is not None:
        rest += x_dense @ weights.skip.to(dense_dtype).T
    objective = Objective(codes, dec, rest, prefixes or (codes.n_features,))

    norms = _norms(weights.dec, unit_decoder)
    passed = architecture.backward(
        Context(
            weights, dec, pre_NF, codes, objective.d_values, norms, rest, objective.project, coefficient, dense_dtype
        )
    )
    error, scale = objective.error, objective.scale
    felt = objective.felt[0]  # by b_dec and the skip path: all prefixes'
    squares: dict[str, Tensor] = {}
    gradients = Weights(
        enc=_encoder_gradient(passed.to_encoder, x_dense, weights.enc, scratch, squares),
        b_enc=_total([c.sum_features(entries) for c, entries in passed.to_bias]),
        dec=objective.decoder_gradient(weights.dec, unit_decoder, scratch, squares),
        b_dec=felt.sum(0) * scale,
        skip=None if weights.skip is None else (felt.to(dense_dtype).T @ x_dense).to(x_ND.dtype).mul_(scale),
        extra=passed.extra,
    )
    if passed.to_norms is not None and not unit_decoder:
        gradients.dec += (passed.to_norms / norms.clamp_min(1e-12))[:, None] * weights.dec
        squares.pop("dec", None)
    aux_loss = None
    if dead is not None and len(dead) and aux_alpha > 0:
        aux = _auxiliary(weights, x_dense, error, pre_NF, dead, aux_k, aux_alpha)
        aux_loss = aux.loss
        if unit_decoder:
            remove_parallel(aux.dec, weights.dec[dead])
        for name, extra in (("enc", aux.enc), ("b_enc", aux.b_enc), ("dec", aux.dec)):
            gradient = getattr(gradients, name)
            gradient[dead] += extra
            if name in squares:
                squares[name][dead] = gradient[dead].square().sum(1)
    loss = torch.linalg.vector_norm(error).square() / error.numel()
    return StepOutput(loss, passed.penalty, aux_loss, error, codes, encoded.minimum, gradients, squares)


def _encoder_gradient(
    parts: Sequence[tuple[Codes, Tensor]], x_dense: Tensor, enc_FD: Tensor, scratch: Scratch, squares: dict[str, Tensor]
) -> Tensor:
    out = scratch.buffer("gradient of enc", tuple(enc_FD.shape), enc_FD.dtype, enc_FD.device)
    (codes, entries), *others = parts
    squares["enc"] = codes.gradient_rows(entries, x_dense, out)
    for other, more in others:
        out += other.transposed_times(more, x_dense)
        squares.pop("enc", None)
    return out


class Objective:
    """The reconstruction loss: the mean, over prefixes of the features, of the mean squared error per coordinate.

    ``felt[m]`` [N, d_out] times ``scale`` is dL/dy_hat as the features of part m feel it: the sum over all prefixes
    that hold them. With one prefix that is the gradient of the plain loss. ``d_values``: entries of dL/df.
    """

    def __init__(self, codes: Codes, dec_FD: Tensor, rest_ND: Tensor, prefixes: Sequence[int]) -> None:
        self._codes, self._dec, self._prefixes = codes, dec_FD, tuple(prefixes)
        self.scale = 2.0 / (rest_ND.numel() * len(self._prefixes))
        if len(self._prefixes) == 1:
            self.error, products = codes.reconstruct(dec_FD, rest_ND)
            self.felt = [self.error]
            self.d_values = products.mul_(self.scale)
            return
        self._parts = codes.split(self._prefixes)
        errors, error = [], rest_ND
        for (part, _), rows in zip(self._parts, self._decoder_parts(dec_FD), strict=True):
            error = part.times(rows).add_(error)
            errors.append(error)
        self.error = error
        self.felt = [error]
        for error in reversed(errors[:-1]):
            self.felt.insert(0, self.felt[0] + error)
        self.d_values = self.project(codes)

    def project(self, codes: Codes) -> Tensor:
        """Entries <gradient felt by feature f in row n, dec[f]>."""
        if len(self._prefixes) == 1:
            return codes.products(self.felt[0], self._dec).mul_(self.scale)
        parts = self._parts if codes is self._codes else codes.split(self._prefixes)
        entries = torch.empty_like(codes.values)
        for (part, where), felt, rows in zip(parts, self.felt, self._decoder_parts(self._dec), strict=True):
            entries[where] = part.products(felt, rows).mul_(self.scale)
        return entries

    def decoder_gradient(self, dec_FD: Tensor, unit: bool, scratch: Scratch, squares: dict[str, Tensor]) -> Tensor:
        """dL/d dec [F, d_out], and the squared lengths of its rows into ``squares``."""
        out = scratch.buffer("gradient of dec", tuple(dec_FD.shape), dec_FD.dtype, dec_FD.device)
        parts = [(self._codes, slice(None))] if len(self._prefixes) == 1 else self._parts
        lengths = []
        tables = zip(parts, self.felt, self._decoder_parts(out), self._decoder_parts(dec_FD), strict=True)
        for (part, _), felt, rows, directions in tables:
            lengths.append(
                part.gradient_rows(
                    part.values * self.scale, felt.to(self._dec.dtype), rows, directions if unit else None
                )
            )
        squares["dec"] = torch.cat(lengths)
        return out

    def _decoder_parts(self, rows_FD: Tensor) -> list[Tensor]:
        return [rows_FD[low:high] for low, high in zip((0, *self._prefixes[:-1]), self._prefixes, strict=True)]


def _norms(dec_FD: Tensor, unit: bool) -> Tensor:
    return dec_FD.new_ones(len(dec_FD)) if unit else torch.linalg.vector_norm(dec_FD, dim=1)


def _total(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).sum(0)


@dataclass
class _Auxiliary:
    """The auxiliary loss, and its gradients at the dead features' rows."""

    loss: Tensor
    enc: Tensor
    b_enc: Tensor
    dec: Tensor


def _auxiliary(
    weights: Weights, x_dense: Tensor, error_ND: Tensor, pre_NF: Tensor, dead: Tensor, aux_k: int, alpha: float
) -> _Auxiliary:
    """AuxK: the dead features alone predict the residual y - y_hat.

    The residual is a constant, already free of b_dec (which is not added again), and its variance divides the
    loss. Values are cut at zero as in the model, except those of a feature that is negative in every row: its
    values count as they are, which pulls them up (else nothing would ever reach it).
    """
    residual = -error_ND
    variance = (residual - residual.mean(0)).square().mean()
    dtype = x_dense.dtype
    a_ND = pre_NF[:, dead]
    positive = a_ND > 0
    mask = positive | ~positive.any(0)
    if len(dead) > aux_k:
        mask &= torch.zeros_like(mask).scatter_(1, top_k(a_ND, aux_k)[1], True)
    a_ND = a_ND.masked_fill(~mask, 0.0)
    dec = weights.dec[dead].to(dtype)
    miss = (a_ND @ dec).to(residual.dtype).sub_(residual)
    scale = 1.0 / (miss.numel() * variance.clamp_min(1e-12))
    g_ND = (miss * (2.0 * alpha * scale)).to(dtype)
    da_ND = (g_ND @ dec.T).masked_fill_(~mask, 0.0)
    full = weights.enc.dtype
    return _Auxiliary(
        loss=miss.square().sum() * scale,
        enc=(da_ND.T @ x_dense).to(full),
        b_enc=da_ND.sum(0, dtype=full),
        dec=(a_ND.T @ g_ND).to(full),
    )


def clip_factor(gradients: Weights, limit: float, squares: Mapping[str, Tensor]) -> float:
    """What all gradients are to be multiplied by, so that their joint L2 norm is at most ``limit``.

    ``squares``: squared lengths of the rows of some of them, which spares reading those again.
    """
    parts = [
        squares[name].sum(dtype=torch.float64)
        if name in squares
        else torch.linalg.vector_norm(tensor).double().square()
        for name, tensor in gradients.named()
    ]
    return min(1.0, limit / max(1e-12, float(torch.stack(parts).sum().sqrt())))
