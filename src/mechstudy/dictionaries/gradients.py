"""One training step's loss and gradients, written out by hand.

Autograd would keep and revisit dense [N, F] matrices. Here the reconstruction error g = dL/dy_hat reaches the
weights through active entries only:

    dW_dec[f] = sum_n f_nf g_n      df_nf = <g_n, W_dec[f]>      dW_enc[:, f] = sum_n du_nf x_n

and the architecture says how df becomes du. A test holds every line of this to autograd on the plain dense formula,
in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.dictionaries.architectures.base import Architecture, Context
from mechstudy.dictionaries.codes import Codes
from mechstudy.dictionaries.kernels import top_k
from mechstudy.dictionaries.weights import Weights


@dataclass
class StepOutput:
    """What a step found.

    loss: mean squared error per coordinate of the whole dictionary (about FVU, as targets have unit variance);
    penalty and aux_loss: what else is minimised; error = y_hat - y; minimum: see `architectures.base.Encoded`.
    """

    loss: Tensor
    penalty: Tensor | None
    aux_loss: Tensor | None
    error_ND: Tensor
    codes: Codes
    minimum: float | None
    gradients: Weights


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
) -> StepOutput:
    """Loss, codes and gradients on one batch of normalised rows.

    Args:
        dense_dtype: of the dense products; the sparse ones stay in the weights' dtype.
        guess: the last batch's ``minimum``.
        prefixes: Matryoshka: numbers of features, rising, the last one F; each prefix reconstructs by itself, and
            the loss is the mean over prefixes. None or one prefix is the plain dictionary.
        coefficient: of the architecture's sparsity penalty.
        unit_decoder: decoder rows have length one, so that the penalty need not know their length.
        dead: indices of dead features, for the auxiliary loss; None or empty turns it off.
    """
    x_dense = x_ND.to(dense_dtype)
    pre_NF = torch.addmm(weights.b_enc.to(dense_dtype), x_dense, weights.enc.to(dense_dtype).T)
    encoded = architecture.encode(pre_NF, weights, guess, dense_dtype)
    codes = encoded.codes
    rest = weights.b_dec - y_ND
    if weights.skip is not None:
        rest += x_dense @ weights.skip.to(dense_dtype).T
    objective = _Objective(codes, weights.dec, rest, prefixes or (codes.n_features,))
    error, g_ND = objective.error, objective.gradients[0]

    norms = _norms(weights.dec, unit_decoder)
    d_values = objective.project(codes)
    passed = architecture.backward(
        Context(weights, pre_NF, codes, d_values, norms, rest, objective.project, coefficient, dense_dtype)
    )
    gradients = Weights(
        enc=_total([c.transposed_times(entries, x_ND) for c, entries in passed.to_encoder]),
        b_enc=_total([c.sum_features(entries) for c, entries in passed.to_bias]),
        dec=objective.decoder_gradient(),
        b_dec=g_ND.sum(0),
        skip=None if weights.skip is None else (g_ND.to(dense_dtype).T @ x_dense).to(x_ND.dtype),
        extra=passed.extra,
    )
    if passed.to_norms is not None and not unit_decoder:
        gradients.dec += (passed.to_norms / norms.clamp_min(1e-12))[:, None] * weights.dec
    aux_loss = None
    if dead is not None and len(dead) and aux_alpha > 0:
        aux_loss = _add_auxiliary(weights, gradients, x_dense, error, pre_NF, dead, aux_k, aux_alpha)
    loss = error.square().sum() / error.numel()
    return StepOutput(loss, passed.penalty, aux_loss, error, codes, encoded.minimum, gradients)


class _Objective:
    """The reconstruction loss: the mean, over prefixes of the features, of the mean squared error per coordinate.

    ``gradients[m]`` [N, d_out] is dL/dy_hat as the features of part m feel it: the sum over all prefixes that hold
    them. With one prefix that is the gradient of the plain loss.
    """

    def __init__(self, codes: Codes, dec_FD: Tensor, rest_ND: Tensor, prefixes: Sequence[int]) -> None:
        self._codes, self._dec, self._prefixes = codes, dec_FD, tuple(prefixes)
        scale = 2.0 / (rest_ND.numel() * len(self._prefixes))
        if len(self._prefixes) == 1:
            self.error = codes.times(dec_FD).add_(rest_ND)
            self.gradients = [self.error * scale]
            return
        self._parts = codes.split(self._prefixes)
        errors, error = [], rest_ND
        for (part, _), rows in zip(self._parts, self._decoder_parts(), strict=True):
            error = part.times(rows).add_(error)
            errors.append(error)
        self.error = error
        self.gradients = [error * scale]
        for error in reversed(errors[:-1]):
            self.gradients.insert(0, torch.add(self.gradients[0], error, alpha=scale))

    def project(self, codes: Codes) -> Tensor:
        """Entries <gradient felt by feature f in row n, dec[f]>."""
        if len(self._prefixes) == 1:
            return codes.products(self.gradients[0], self._dec)
        parts = self._parts if codes is self._codes else codes.split(self._prefixes)
        entries = torch.empty_like(codes.values)
        for (part, where), g_ND, rows in zip(parts, self.gradients, self._decoder_parts(), strict=True):
            entries[where] = part.products(g_ND, rows)
        return entries

    def decoder_gradient(self) -> Tensor:
        if len(self._prefixes) == 1:
            return self._codes.transposed_times(self._codes.values, self.gradients[0])
        return torch.cat(
            [part.transposed_times(part.values, g) for (part, _), g in zip(self._parts, self.gradients, strict=True)]
        )

    def _decoder_parts(self) -> list[Tensor]:
        return [self._dec[low:high] for low, high in zip((0, *self._prefixes[:-1]), self._prefixes, strict=True)]


def _norms(dec_FD: Tensor, unit: bool) -> Tensor:
    return dec_FD.new_ones(len(dec_FD)) if unit else torch.linalg.vector_norm(dec_FD, dim=1)


def _total(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).sum(0)


def _add_auxiliary(
    weights: Weights,
    gradients: Weights,
    x_dense: Tensor,
    error_ND: Tensor,
    pre_NF: Tensor,
    dead: Tensor,
    aux_k: int,
    alpha: float,
) -> Tensor:
    """AuxK: the dead features alone predict the residual y - y_hat; adds to `gradients`, returns the loss.

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
    gradients.dec[dead] += (a_ND.T @ g_ND).to(full)
    gradients.enc[dead] += (da_ND.T @ x_dense).to(full)
    gradients.b_enc[dead] += da_ND.sum(0, dtype=full)
    return miss.square().sum() * scale


def remove_parallel(gradient_FD: Tensor, dec_FD: Tensor) -> None:
    """Take from each row's gradient its component along the (unit) decoder row, in place."""
    gradient_FD.sub_((gradient_FD * dec_FD).sum(1, keepdim=True) * dec_FD)


def normalise_rows(dec_FD: Tensor) -> None:
    """Make each decoder row a unit vector, in place."""
    dec_FD.div_(torch.linalg.vector_norm(dec_FD, dim=1, keepdim=True).clamp_min(1e-12))


def clip(gradients: Weights, limit: float) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `limit`; returns the norm before."""
    tensors = [tensor for _, tensor in gradients.named()]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
    factor = (limit / norm.clamp_min(1e-12)).clamp_max(1.0)
    torch._foreach_mul_(tensors, factor)
    return norm
