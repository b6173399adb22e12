"""AuxK (Gao et al. 2024): an auxiliary loss that revives dead features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.dictionaries.kernels import top_k
from mechstudy.dictionaries.training.data_parallel import ProcessGroup
from mechstudy.dictionaries.weights import Weights


@dataclass
class Auxiliary:
    """The auxiliary loss, and its gradients at the dead features' rows."""

    loss: Tensor
    enc: Tensor
    b_enc: Tensor
    dec: Tensor


def auxiliary(
    weights: Weights, x_dense: Tensor, error_ND: Tensor, pre_NF: Tensor, dead: Tensor, aux_k: int, alpha: float,
    n_rows: int, group: ProcessGroup,
) -> Auxiliary:  # fmt: skip
    """AuxK: the dead features alone predict the residual y - y_hat.

    The residual is a constant without b_dec (which is not added again), and its variance divides the loss. Values are
    clamped at zero as in the model, except those of a feature that is negative in every row: its negative values count,
    which pulls them up (no gradient would reach it otherwise).
    """
    residual = -error_ND
    width, here = residual.shape[1], group.total(len(residual))
    mean = residual.sum(0)
    group.sum(mean)
    variance = (residual - mean / here).square().sum()
    group.sum(variance)
    variance = variance / (here * width)
    dtype = x_dense.dtype
    a_ND = pre_NF[:, dead]
    positive = a_ND > 0
    ever = positive.sum(0)
    group.sum(ever)
    mask = positive | (ever == 0)
    if len(dead) > aux_k:
        mask &= torch.zeros_like(mask).scatter_(1, top_k(a_ND, aux_k)[1], True)
    a_ND = a_ND.masked_fill(~mask, 0.0)
    dec = weights.dec[dead].to(dtype)
    miss = (a_ND @ dec).to(residual.dtype).sub_(residual)
    scale = 1.0 / (n_rows * width * variance.clamp_min(1e-12))
    g_ND = (miss * (2.0 * alpha * scale)).to(dtype)
    da_ND = (g_ND @ dec.T).masked_fill_(~mask, 0.0)
    full = weights.enc.dtype
    return Auxiliary(
        loss=miss.square().sum() * scale,
        enc=(da_ND.T @ x_dense).to(full),
        b_enc=da_ND.sum(0, dtype=full),
        dec=(a_ND.T @ g_ND).to(full),
    )
