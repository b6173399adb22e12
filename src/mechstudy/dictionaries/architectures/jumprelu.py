"""JumpReLU (Rajamanoharan et al. 2024): f = pre where pre > threshold, with learned thresholds.

A threshold has no gradient of its own. Straight-through estimate: entries within half a bandwidth of a threshold
estimate the density there, so raising the threshold removes theta of the feature's activation, and one from L0, at rate
1/bandwidth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.dictionaries.architectures.base import Context, Encoded, Passed, upper_quantile
from mechstudy.dictionaries.architectures.penalties import PENALTIES
from mechstudy.dictionaries.codes import codes_between
from mechstudy.dictionaries.training.data_parallel import ProcessGroup
from mechstudy.dictionaries.weights import Weights

L0_STRENGTH = 8.0  # of the quadratic penalty: 10% off the target costs as much as .08 of FVU
STEERING = 0.05  # change of log thresholds a step, per unit of log(L0 / k)
TANH_WEIGHT = 1e-3  # of the tanh penalty at coefficient 1
_RELIEF = 8  # the tanh penalty falls by (L0 / k)^8 below the target


@dataclass(frozen=True)
class JumpReLU:
    """L0 is pulled to k by strength x (L0 / k - 1)^2 (Gemma Scope 2), which needs no coefficient.

    All thresholds are also steered together until L0 is k: the pull alone moves a threshold by at most the learning
    rate a step, and in a transcoder, whose pre-activations shrink as fast, L0 stayed at .6 k.

    ``penalty`` "tanh" adds a tanh penalty on activations (Anthropic, January 2025). Its weight falls while L0 is below
    k: no threshold, however low, revives features whose pre-activations the penalty has made negative.
    """

    k: int
    penalty: str = "l0"
    bandwidth: float = 0.1
    needs_control: bool = False

    def start(self, pre_NF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Thresholds that k features of a row exceed on average."""
        threshold = torch.full_like(pre_NF[0], max(1e-3, upper_quantile(pre_NF, self.k)))
        return torch.zeros_like(pre_NF[0]), {"log_threshold": threshold.log()}

    def encode(
        self, pre_NF: Tensor, weights: Weights, guess: float | None, dense_dtype: torch.dtype, group: ProcessGroup
    ) -> Encoded:
        """See `Architecture.encode`."""
        return Encoded(codes_between(pre_NF, weights.extra["log_threshold"].exp(), dense_dtype=dense_dtype))

    def backward(self, context: Context) -> Passed:
        """See `Architecture.backward`."""
        codes, n = context.codes, context.n_rows
        dtype = context.norms_F.dtype
        threshold_F = context.weights.extra["log_threshold"].exp()
        low_F, high_F = threshold_F - self.bandwidth / 2, threshold_F + self.bandwidth / 2
        near = codes_between(context.pre_NF, low_F, high_F, dense_dtype=context.dense_dtype)
        here = near.values != 0 if near.values.ndim == 2 else torch.ones_like(near.values, dtype=torch.bool)
        lost = context.project(near) * near.per_feature(threshold_F)
        active = codes.values > 0
        through = context.d_values * active
        result = Passed([(codes, through)], [(codes, through)])
        with_tanh = self.penalty != "l0"
        strength = L0_STRENGTH * (1.0 if with_tanh else context.coefficient)
        at_hand = context.group.total(codes.n_rows)  # L0 is taken over the rows of this part
        excess = context.group.total(float(active.sum())) / (at_hand * self.k) - 1.0
        result.penalty = torch.tensor(strength * excess**2 * codes.n_rows / n, dtype=dtype)
        lost = lost + 2.0 * strength * excess / (self.k * n)
        if with_tanh:
            phi, norms_F = PENALTIES[self.penalty], context.norms_F
            wanted = min(1.0, 1.0 + excess) ** _RELIEF
            scale = TANH_WEIGHT * context.coefficient * wanted / n
            s = codes.values * codes.per_feature(norms_F)
            slope = phi.slope(s) * active * scale
            through += slope * codes.per_feature(norms_F)
            result.to_norms = codes.sum_features(slope * codes.values)
            result.penalty = result.penalty + (phi.value(s) * active).sum() * scale
            lost = lost + scale * near.per_feature(phi.value(threshold_F * norms_F))
        d_threshold = -near.sum_features(lost * here) / self.bandwidth
        result.extra = {"log_threshold": d_threshold * threshold_F}
        return result

    def after_step(self, weights: Weights, l0: float) -> None:
        """Too many active features raise every threshold, too few lower it."""
        error = max(-1.0, min(1.0, math.log(max(l0, 1e-3) / self.k)))
        weights.extra["log_threshold"] += STEERING * error

    def at_inference(self, weights: Weights, threshold: float | None) -> tuple[Weights, Tensor | None]:
        """See `Architecture.at_inference`."""
        return weights, weights.extra["log_threshold"].exp()
