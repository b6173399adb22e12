"""One training step's loss and gradients, written out by hand.

Autograd would keep and revisit dense [N, F] matrices. Here the reconstruction error g = dL/dy_hat reaches the
weights through active entries only:

    dW_dec[f] = sum_n f_nf g_n      df_nf = <g_n, W_dec[f]> where f_nf > 0      dW_enc[:, f] = sum_n df_nf x_n

A test holds every line of this to autograd on the plain dense formula, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.dictionaries.kernels import SparseCodes, top_k


@dataclass
class Weights:
    """Weights in the normalised space. `enc` is W_enc transposed, so that both big matrices are rows by feature.

    enc [F, d_in], b_enc [F], dec [F, d_out], b_dec [d_out], skip [d_out, d_in] or None. Gradients use it too.
    """

    enc: Tensor
    b_enc: Tensor
    dec: Tensor
    b_dec: Tensor
    skip: Tensor | None = None

    def named(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("enc", "b_enc", "dec", "b_dec", "skip"):
            tensor = getattr(self, name)
            if tensor is not None:
                yield name, tensor


@dataclass
class StepOutput:
    """loss: mean squared error per coordinate (about FVU, as targets have unit variance). error = y_hat - y."""

    loss: Tensor
    aux_loss: Tensor | None
    error_ND: Tensor
    codes: SparseCodes
    gradients: Weights


def loss_and_gradients(
    weights: Weights,
    x_ND: Tensor,
    y_ND: Tensor,
    select: Callable[[Tensor], SparseCodes],
    *,
    dense_dtype: torch.dtype,
    dead: Tensor | None = None,
    aux_k: int = 0,
    aux_alpha: float = 0.0,
) -> StepOutput:
    """Loss, codes and gradients on one batch of normalised rows.

    Args:
        select: pre-activations [N, F] -> codes (TopK or BatchTopK).
        dense_dtype: of the dense products; the sparse ones stay in the weights' dtype.
        dead: indices of dead features, for the auxiliary loss; None or empty turns it off.
    """
    x_dense = x_ND.to(dense_dtype)
    enc_dense = weights.enc.to(dense_dtype)
    pre_NF = torch.addmm(weights.b_enc.to(dense_dtype), x_dense, enc_dense.T)
    codes = select(pre_NF)
    error = codes.times(weights.dec).add_(weights.b_dec).sub_(y_ND)
    if weights.skip is not None:
        error += x_dense @ weights.skip.to(dense_dtype).T
    scale = 1.0 / error.numel()
    loss = error.square().sum() * scale
    g_ND = error * (2.0 * scale)

    d_values = codes.products(g_ND, weights.dec) * (codes.values > 0)
    ones = torch.ones(len(x_ND), 1, dtype=x_ND.dtype, device=x_ND.device)
    gradients = Weights(
        enc=codes.transposed_times(d_values, x_ND),
        b_enc=codes.transposed_times(d_values, ones).squeeze(1),
        dec=codes.transposed_times(codes.values, g_ND),
        b_dec=g_ND.sum(0),
        skip=None if weights.skip is None else (g_ND.to(dense_dtype).T @ x_dense).to(x_ND.dtype),
    )
    aux_loss = None
    if dead is not None and len(dead) and aux_alpha > 0:
        aux_loss = _add_auxiliary(weights, gradients, x_dense, error, pre_NF, dead, aux_k, aux_alpha)
    return StepOutput(loss, aux_loss, error, codes, gradients)


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
