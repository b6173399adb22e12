"""BatchTopK (Bussmann et al. 2024): the N * k largest pre-activations of a batch; a JumpReLU at inference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.dictionaries.architectures.base import Context, Encoded, LearnedOnly, Passed, plain_backward
from mechstudy.dictionaries.codes import batch_topk_codes
from mechstudy.dictionaries.training.data_parallel import ProcessGroup
from mechstudy.dictionaries.weights import Weights


@dataclass(frozen=True)
class BatchTopK(LearnedOnly):
    """k: active features of a row, on average over a batch."""

    k: int
    needs_control: bool = False

    def start(self, pre_NF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Architecture.start`."""
        return pre_NF.new_zeros(pre_NF.shape[1]), {}

    def encode(
        self, pre_NF: Tensor, weights: Weights, guess: float | None, dense_dtype: torch.dtype, group: ProcessGroup
    ) -> Encoded:
        """See `Architecture.encode`."""
        return Encoded(*batch_topk_codes(pre_NF, self.k, weights.dec.dtype, guess, group))

    def backward(self, context: Context) -> Passed:
        """See `Architecture.backward`."""
        return plain_backward(context)

    def at_inference(self, weights: Weights, threshold: float | None) -> tuple[Weights, Tensor | None]:
        """See `Architecture.at_inference`."""
        return weights, torch.full_like(weights.b_enc, threshold or 0.0)
