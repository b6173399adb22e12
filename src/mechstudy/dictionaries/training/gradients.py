"""Loss and gradients of one training step, derived by hand.

Autograd would keep and revisit dense [N, F] matrices. Here the reconstruction error g = dL/dy_hat reaches the
weights through active entries only:

    dW_dec[f] = sum_n f_nf g_n      df_nf = <g_n, W_dec[f]>      dW_enc[:, f] = sum_n du_nf x_n

and the architecture defines how df becomes du. Tests compare all of it with autograd on the dense formula, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechstudy.dictionaries.architectures import cross_layer
from mechstudy.dictionaries.architectures.base import Architecture, Context
from mechstudy.dictionaries.codes import Codes
from mechstudy.dictionaries.kernels.reference import remove_parallel
from mechstudy.dictionaries.training.auxiliary import Auxiliary, auxiliary
from mechstudy.dictionaries.training.data_parallel import ALONE, ProcessGroup
from mechstudy.dictionaries.training.objective import Objective, Reconstruction
from mechstudy.dictionaries.weights import Scratch, Weights


@dataclass
class StepOutput:
    """Results of a step.

    loss: mean squared error per coordinate of the whole dictionary (about FVU, as targets have unit variance);
    penalty and aux_loss: the other minimised terms; error = y_hat - y; minimum: see `architectures.base.Encoded`;
    squares: squared lengths [F] of the rows of those gradients for which they were computed; active: entries of the
    whole batch's codes (`step.train_step`).
    """

    loss: Tensor
    penalty: Tensor | None
    aux_loss: Tensor | None
    error_ND: Tensor
    codes: Codes
    minimum: float | None
    gradients: Weights
    squares: dict[str, Tensor] = field(default_factory=dict)
    active: float = 0.0


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
    n_sites: int = 0,
    n_rows: int | None = None,
    group: ProcessGroup = ALONE,
) -> StepOutput:
    """Loss, codes and gradients on one batch of normalised rows, or on a part of one.

    Args:
        weights: in the normalised space.
        x_ND: inputs.
        y_ND: targets.
        architecture: of the dictionary.
        dense_dtype: of the factors in all products; sums are in the weights' dtype.
        guess: the last batch's ``minimum``.
        prefixes: Matryoshka: rising numbers of features, the last one F; each prefix reconstructs by itself, and
            the loss is the mean over prefixes. No or one prefix: a plain dictionary.
        coefficient: of the architecture's sparsity penalty.
        unit_decoder: decoder rows have length one: the penalty ignores their length, and the gradient has no component
            along them.
        dead: indices of dead features, for the auxiliary loss; None or empty turns it off.
        aux_k: dead features of a row in the auxiliary loss.
        aux_alpha: weight of the auxiliary loss.
        scratch: of the training; the result is then valid until the next step.
        n_sites: of a cross-layer transcoder (see `cross_layer`); 0: an ordinary dictionary.
        n_rows: rows of the whole batch, of which these are a part; losses and gradients are then parts of sums.
        group: processes with the other parts; BatchTopK and L0 are taken over all of them.
    """
    scratch = scratch or Scratch()
    n_rows = n_rows or len(x_ND)
    x_dense = x_ND.to(dense_dtype)
    dec = scratch.copy_of("dec", weights.dec, dense_dtype)
    pre_NF = _pre_activations(weights, x_dense, n_sites, scratch)
    encoded = architecture.encode(pre_NF, weights, guess, dense_dtype, group)
    codes = encoded.codes
    rest = _rest(weights, x_dense, y_ND)
    objective: Objective
    if n_sites:
        objective = cross_layer.CrossLayer(codes, dec, rest, n_sites, n_rows)
    else:
        objective = Reconstruction(codes, dec, rest, prefixes or (codes.n_features,), n_rows)
    norms = _norms(weights.dec, unit_decoder, n_sites)
    context = Context(
        weights, dec, pre_NF, codes, objective.d_values, norms, rest, objective.project, coefficient, dense_dtype,
        n_rows, group,
    )  # fmt: skip
    passed = architecture.backward(context)
    error, felt, scale = objective.error, objective.felt, objective.scale
    squares: dict[str, Tensor] = {}
    gradients = Weights(
        enc=_encoder_gradient(passed.to_encoder, x_dense, weights.enc, n_sites, scratch, squares),
        b_enc=_total([c.sum_features(entries) for c, entries in passed.to_bias]),
        dec=objective.decoder_gradient(weights.dec, unit_decoder, scratch, squares),
        b_dec=felt.sum(0) * scale,
        skip=None if weights.skip is None else (felt.to(dense_dtype).T @ x_dense).to(x_ND.dtype).mul_(scale),
        extra=passed.extra,
    )
    if passed.to_norms is not None and not unit_decoder:
        gradients.dec += _along_rows(passed.to_norms / norms.clamp_min(1e-12), weights.dec, n_sites)
        squares.pop("dec", None)
    aux_loss = None
    if dead is not None and len(dead) and aux_alpha > 0 and not n_sites:
        aux = auxiliary(weights, x_dense, error, pre_NF, dead, aux_k, aux_alpha, n_rows, group)
        aux_loss = aux.loss
        _add_auxiliary(aux, weights, gradients, squares, dead, unit_decoder)
    loss = torch.linalg.vector_norm(error).square() / (n_rows * error.shape[1])
    return StepOutput(loss, passed.penalty, aux_loss, error, codes, encoded.minimum, gradients, squares)


def _along_rows(scale_F: Tensor, dec: Tensor, n_sites: int) -> Tensor:
    """Each decoder row, scaled."""
    return cross_layer.scale_rows(scale_F, dec, n_sites) if n_sites else scale_F[:, None] * dec


def _rest(weights: Weights, x_dense: Tensor, y_ND: Tensor) -> Tensor:
    """What codes @ dec is added to for the error: b_dec + skip path - target, [N, d_out]."""
    rest = weights.b_dec - y_ND
    if weights.skip is not None:
        rest += x_dense @ weights.skip.to(x_dense.dtype).T
    return rest


def _pre_activations(weights: Weights, x_dense: Tensor, n_sites: int, scratch: Scratch) -> Tensor:
    """Pre-activations [N, F], in the rows' dtype and a buffer of the training."""
    enc, b_enc = scratch.copy_of("enc", weights.enc, x_dense.dtype), weights.b_enc.to(x_dense.dtype)
    pre_NF = scratch.buffer("pre", (len(x_dense), len(enc)), x_dense.dtype, x_dense.device)
    if n_sites:
        cross_layer.encode(x_dense, enc, b_enc, n_sites, pre_NF)
    else:
        torch.addmm(b_enc, x_dense, enc.T, out=pre_NF)
    return pre_NF


def _encoder_gradient(
    parts: Sequence[tuple[Codes, Tensor]], x_dense: Tensor, enc_FD: Tensor, n_sites: int, scratch: Scratch,
    squares: dict[str, Tensor],
) -> Tensor:  # fmt: skip
    def rows(codes: Codes, entries: Tensor, out: Tensor) -> Tensor:
        if n_sites:
            return cross_layer.encoder_gradient(codes, entries, x_dense, n_sites, out)
        return codes.gradient_rows(entries, x_dense, out)

    out = scratch.buffer("gradient of enc", tuple(enc_FD.shape), enc_FD.dtype, enc_FD.device)
    (codes, entries), *others = parts
    squares["enc"] = rows(codes, entries, out)
    for other, more in others:
        extra = torch.empty_like(out)
        rows(other, more, extra)
        out += extra
        squares.pop("enc", None)
    return out


def _add_auxiliary(
    aux: Auxiliary, weights: Weights, gradients: Weights, squares: dict[str, Tensor], dead: Tensor, unit: bool
) -> None:
    if unit:
        remove_parallel(aux.dec, weights.dec[dead])
    for name, extra in (("enc", aux.enc), ("b_enc", aux.b_enc), ("dec", aux.dec)):
        gradient = getattr(gradients, name)
        gradient[dead] += extra
        if name in squares:
            squares[name][dead] = gradient[dead].square().sum(1)


def _norms(dec: Tensor, unit: bool, n_sites: int) -> Tensor:
    if n_sites:
        return cross_layer.decoder_norms(dec, n_sites)
    return dec.new_ones(len(dec)) if unit else torch.linalg.vector_norm(dec, dim=1)


def _total(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).sum(0)


def clip_factor(gradients: Weights, limit: float, squares: Mapping[str, Tensor]) -> float:
    """The factor for all gradients that makes their joint L2 norm at most ``limit``.

    ``squares``: squared lengths of the rows of some of them, which need not be read again.
    """
    parts = [
        squares[name].sum(dtype=torch.float64)
        if name in squares
        else torch.linalg.vector_norm(tensor).double().square()
        for name, tensor in gradients.named()
    ]
    return min(1.0, limit / max(1e-12, float(torch.stack(parts).sum().sqrt())))
