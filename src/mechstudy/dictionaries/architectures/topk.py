"""TopK (Gao et al. 2024): the k largest pre-activations of each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.dictionaries.architectures.base import Context, Encoded, LearnedOnly, Passed, plain_backward
from mechstudy.dictionaries.codes import topk_codes
from mechstudy.dictionaries.training.data_parallel import ProcessGroup
from mechstudy.dictionaries.weights import Weights


@dataclass(frozen=True)
class TopK(LearnedOnly):
    """k: active features of every row."""

    k: int
    needs_control: bool = False

    def start(self, pre_NF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Architecture.start`."""
        return pre_NF.new_zeros(pre_NF.shape[1]), {}

    def encode(
        self, pre_NF: Tensor, weights: Weights, guess: float | None, dense_dtype: torch.dtype, group: ProcessGroup
    ) -> Encoded:
        """See `Architecture.encode`."""
        return Encoded(topk_codes(pre_NF, self.k, weights.dec.dtype))

    def backward(self, context: Context) -> Passed:
        """See `Architecture.backward`."""
        return plain_backward(context)

    def at_inference(self, weights: Weights, threshold: float | None) -> tuple[Weights, Tensor | None]:
        """See `Architecture.at_inference`."""
        return weights, None
