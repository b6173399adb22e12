"""The interface of an architecture: from pre-activations to codes, and the gradients of that.

Decoder, skip path, prefixes, auxiliary loss and optimizer are the same for all architectures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mechstudy.dictionaries.codes import Codes
from mechstudy.dictionaries.training.data_parallel import ProcessGroup
from mechstudy.dictionaries.weights import Weights


@dataclass(frozen=True)
class Encoded:
    """Codes; `minimum` is the smallest kept activation of an architecture that selects over the batch."""

    codes: Codes
    minimum: float | None = None


@dataclass(frozen=True)
class Context:
    """Inputs of an architecture's backward pass.

    dec [F, d_out]: the decoder in the products' dtype; pre [N, F]; d_values: entries of dL/df of the codes, from the
    reconstruction alone; norms [F]: lengths of the decoder rows; rest [N, d_out]: b_dec + skip path - target, so that
    codes @ dec + rest is the error; project(codes): entries of <dL/dy_hat[n], dec[f]> anywhere; coefficient: of the
    sparsity penalty, which is a mean over rows; n_rows: of the whole batch, of which these and those of the other
    processes of the group are parts.
    """

    weights: Weights
    dec_FD: Tensor
    pre_NF: Tensor
    codes: Codes
    d_values: Tensor
    norms_F: Tensor
    rest_ND: Tensor
    project: Callable[[Codes], Tensor]
    coefficient: float
    dense_dtype: torch.dtype
    n_rows: int
    group: ProcessGroup


@dataclass
class Passed:
    """Gradients behind the codes.

    to_encoder: (codes, entries of dL/du) with u = x @ enc.T; to_bias: those that reach b_enc too (u + b_enc);
    extra: gradients of the architecture's own weights; to_norms [F]: dL/d||dec_f||; penalty: the added loss.
    """

    to_encoder: list[tuple[Codes, Tensor]]
    to_bias: list[tuple[Codes, Tensor]]
    extra: dict[str, Tensor] = field(default_factory=dict)
    to_norms: Tensor | None = None
    penalty: Tensor | None = None


@runtime_checkable
class Architecture(Protocol):
    """A sparse activation. Instances hold settings only; everything learned is in the weights."""

    @property
    def needs_control(self) -> bool:
        """Whether training has to adjust the penalty's coefficient to reach k."""

    def start(self, pre_NF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Initial (b_enc [F], own weights) from pre-activations of a first batch (without bias)."""

    def encode(
        self, pre_NF: Tensor, weights: Weights, guess: float | None, dense_dtype: torch.dtype, group: ProcessGroup
    ) -> Encoded:
        """Codes of pre-activations; ``guess``: the last batch's ``minimum``; ``group``: shares the batch."""

    def backward(self, context: Context) -> Passed:
        """Gradients behind the codes."""

    def after_step(self, weights: Weights, l0: float) -> None:
        """Set the weights that are not learned, from the L0 of the batch; not called if a coefficient is configured."""

    def at_inference(self, weights: Weights, threshold: float | None) -> tuple[Weights, Tensor | None]:
        """Weights and thresholds [F] of the JumpReLU that computes the same (None: TopK), in normalised space.

        ``threshold`` is the running mean of ``minimum``.
        """


class LearnedOnly:
    """An architecture whose weights are all learned."""

    def after_step(self, weights: Weights, l0: float) -> None:
        """Do nothing."""


def plain_backward(context: Context) -> Passed:
    """Gradients through active entries only."""
    through = context.d_values * (context.codes.values > 0)
    return Passed([(context.codes, through)], [(context.codes, through)])


def upper_quantile(pre_NF: Tensor, per_row: int) -> float:
    """The value that `per_row` entries of a row exceed on average."""
    wanted = max(1, min(pre_NF.numel(), pre_NF.shape[0] * per_row))
    return float(torch.topk(pre_NF.reshape(-1), wanted, sorted=False)[0].min())
