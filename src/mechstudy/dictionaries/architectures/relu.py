"""ReLU with a penalty on the activations: l1 (Bricken et al. 2023), sqrt or tanh."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.dictionaries.architectures.base import Context, Encoded, LearnedOnly, Passed, upper_quantile
from mechstudy.dictionaries.architectures.penalties import PENALTIES
from mechstudy.dictionaries.codes import codes_between
from mechstudy.dictionaries.training.data_parallel import ProcessGroup
from mechstudy.dictionaries.weights import Weights


@dataclass(frozen=True)
class ReLU(LearnedOnly):
    """k: target L0; training adjusts the penalty's weight to reach it."""

    k: int
    penalty: str = "l1"
    needs_control: bool = True

    def start(self, pre_NF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A bias at which about k features are active: sparse, and so cheap, from the first step."""
        return torch.full_like(pre_NF[0], -upper_quantile(pre_NF, self.k)), {}

    def encode(
        self, pre_NF: Tensor, weights: Weights, guess: float | None, dense_dtype: torch.dtype, group: ProcessGroup
    ) -> Encoded:
        """See `Architecture.encode`."""
        return Encoded(codes_between(pre_NF, torch.zeros_like(weights.b_enc), dense_dtype=dense_dtype))

    def backward(self, context: Context) -> Passed:
        """See `Architecture.backward`.

        d/df of (c/N) sum phi(f |dec|) is (c/N) phi' |dec|, and along each decoder row (c/N) sum phi' f.
        """
        codes, phi = context.codes, PENALTIES[self.penalty]
        active = codes.values > 0
        norms = codes.per_feature(context.norms_F)
        s = codes.values * norms
        scale = context.coefficient / context.n_rows
        slope = phi.slope(s) * active * scale
        through = context.d_values * active + slope * norms
        return Passed(
            [(codes, through)],
            [(codes, through)],
            to_norms=codes.sum_features(slope * codes.values),
            penalty=(phi.value(s) * active).sum() * scale,
        )

    def at_inference(self, weights: Weights, threshold: float | None) -> tuple[Weights, Tensor | None]:
        """See `Architecture.at_inference`."""
        return weights, torch.zeros_like(weights.b_enc)
