"""What an architecture is: how pre-activations become codes, and how gradients find their way back.

Everything else (decoder, skip path, prefixes, auxiliary loss, optimizer) is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mechstudy.dictionaries.codes import Codes
from mechstudy.dictionaries.training.data_parallel import ALONE, Team
from mechstudy.dictionaries.weights import Weights


@dataclass(frozen=True)
class Encoded:
    """codes; `minimum` is the smallest kept activation, where the architecture selects over the batch."""

    codes: Codes
    minimum: float | None = None


@dataclass(frozen=True)
class Context:
    """One step, as an architecture's backward pass sees it.

    dec [F, d_out]: the decoder in the products' dtype; pre [N, F]; d_values: entries of dL/df of the codes, from the
    reconstruction alone; norms [F]: lengths of the decoder rows; rest [N, d_out]: b_dec + skip path - target, so that
    codes @ dec + rest is the error; project(codes): entries of <dL/dy_hat[n], dec[f]> anywhere; coefficient: of the
    sparsity penalty, which is a mean over rows; n_rows: of the whole batch, of which these may be a part, and what is
    held by the other processes of the team another.
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
    team: Team


@dataclass
class Passed:
    """Gradients behind the codes.

    to_encoder: (codes, entries of dL/du) with u = x @ enc.T; to_bias: which of them reach b_enc too (u + b_enc);
    extra: gradients of the architecture's own weights; to_norms [F]: dL/d||dec_f||; penalty: the loss that is added.
    """

    to_encoder: list[tuple[Codes, Tensor]]
    to_bias: list[tuple[Codes, Tensor]]
    extra: dict[str, Tensor] = field(default_factory=dict)
    to_norms: Tensor | None = None
    penalty: Tensor | None = None


class Architecture(Protocol):
    """One way to be sparse. Instances hold settings only; everything learned is in the weights."""

    @property
    def needs_control(self) -> bool:
        """Whether a coefficient has to be found that gives the sparsity asked for."""

    def start(self, pre_NF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(b_enc [F], own weights) to begin with, given pre-activations of a first batch (without bias)."""

    def encode(
        self, pre_NF: Tensor, weights: Weights, guess: float | None, dense_dtype: torch.dtype, team: Team = ALONE
    ) -> Encoded:
        """Codes of pre-activations; ``guess``: the last batch's ``minimum``; ``team``: who holds the batch's rest."""

    def backward(self, context: Context) -> Passed:
        """Where gradients go from the codes."""

    def after_step(self, weights: Weights, l0: float) -> None:
        """What is set, not learned, given the L0 of the batch; not called where the study gives a coefficient."""

    def at_inference(self, weights: Weights, threshold: float | None) -> tuple[Weights, Tensor | None]:
        """Weights and thresholds [F] of the JumpReLU that computes the same (None: TopK), in normalised space.

        ``threshold`` is the running mean of ``minimum``.
        """


class LearnedOnly:
    """An architecture of which nothing is set besides what is learned."""

    def after_step(self, weights: Weights, l0: float) -> None:
        """Nothing."""


def plain_backward(context: Context) -> Passed:
    """Gradients through active entries only."""
    through = context.d_values * (context.codes.values > 0)
    return Passed([(context.codes, through)], [(context.codes, through)])


def upper_quantile(pre_NF: Tensor, per_row: int) -> float:
    """The value that `per_row` entries of a row exceed on average."""
    wanted = max(1, min(pre_NF.numel(), pre_NF.shape[0] * per_row))
    return float(torch.topk(pre_NF.reshape(-1), wanted, sorted=False)[0].min())
