"""Adam, one pass over each matrix: clipping, the update, unit rows and the narrow copy together."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from mechstudy.dictionaries.kernels import kernels_for
from mechstudy.dictionaries.scratch import large_empty
from mechstudy.dictionaries.weights import Weights


class Adam:
    """State and step of Adam (Kingma and Ba 2015) over the weights of a dictionary, in float32.

    moments: name -> (mean of gradients, mean of squared gradients); step: steps done; lr: the last one's.
    """

    def __init__(self, weights: Weights) -> None:
        self.moments = {name: (_zeros_like(w), _zeros_like(w)) for name, w in weights.named()}
        self.count = 0
        self.lr = 0.0

    def step(
        self,
        weights: Weights,
        gradients: Weights,
        lr: float,
        *,
        factor: float = 1.0,
        unit: Collection[str] = (),
        copies: Mapping[str, Tensor] | None = None,
        squares: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Change the weights in place.

        Args:
            factor: what the gradients are multiplied by first (clipping).
            unit: weights whose rows are made unit vectors afterwards.
            copies: bfloat16 copies of some weights, brought up to date.
            squares: squared lengths of the gradients' rows, of some of them.
        """
        self.count, self.lr = self.count + 1, lr
        for (name, weight), (_, gradient) in zip(weights.named(), gradients.named(), strict=True):
            mean, square = self.moments[name]
            rows = [tensor.view(-1, weight.shape[-1]) for tensor in (weight, gradient, mean, square)]
            half = (copies or {}).get(name)
            kernels_for(*rows).adam(
                *rows, lr=lr, step=self.count, factor=factor, unit=name in unit,
                half=None if half is None else half.view(-1, weight.shape[-1]), squares=(squares or {}).get(name),
            )  # fmt: skip


def _zeros_like(weight: Tensor) -> Tensor:
    return large_empty(tuple(weight.shape), weight.dtype, weight.device).zero_()
