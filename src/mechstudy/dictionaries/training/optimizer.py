"""Adam in one pass over each matrix: clipping, update, unit rows and bfloat16 copy together."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from mechstudy.dictionaries.config import Frozen
from mechstudy.dictionaries.kernels import kernels_for
from mechstudy.dictionaries.weights import Weights, large_empty

BIAS_RATE = 3.0
UNIT_DECODER_RATE = 3.0
MATRIX_OF: Mapping[Frozen, str] = {"encoder": "enc", "decoder": "dec"}  # in `Weights`


def relative_rates(unit_decoder: bool, frozen: Frozen | None = None) -> dict[str, float]:
    """Learning rates of some weights relative to the others.

    A step of the rate in every entry of an encoder row moves a pre-activation by many times the rate, a bias by the
    rate alone; and normalising a decoder row undoes the part of the step along it. Measured on SmolLM2-135M
    layer 15, mlp_out, batches of 2,048, F = 4,608, k = 32, held-out FVU with (biases, decoder) at (1, 1) and (3, 3):
    488 steps BatchTopK .322 and .312, TopK .309 and .305, JumpReLU .318 and .309, Gated .337 and .326; 1,952 steps
    BatchTopK .278 and .273, TopK .276 and .276 (there at (4, 3)). Skip transcoder, TopK, F = 2,304, biases at 1, 3 and
    6: .243, .233, .232; its decoder, no unit rows, is as good at 1 as at 2. MCC in SAELens' world .90 and .93, in ours
    .79 and .81. A ``frozen`` encoder or decoder does not learn.
    """
    rates = {"b_enc": BIAS_RATE} | ({"dec": UNIT_DECODER_RATE} if unit_decoder else {})
    return rates | ({MATRIX_OF[frozen]: 0.0} if frozen else {})


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
        rates: Mapping[str, float] | None = None,
        factor: float = 1.0,
        unit: Collection[str] = (),
        copies: Mapping[str, Tensor] | None = None,
        squares: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Change the weights in place.

        Args:
            weights: changed in place.
            gradients: of the same shape.
            lr: learning rate.
            rates: factors of the learning rate for some weights.
            factor: multiplies the gradients first (clipping).
            unit: weights whose rows are normalised afterwards.
            copies: bfloat16 copies of some weights, updated.
            squares: squared lengths of the rows of some gradients.
        """
        self.count, self.lr = self.count + 1, lr
        for (name, weight), (_, gradient) in zip(weights.named(), gradients.named(), strict=True):
            mean, square = self.moments[name]
            rows = [tensor.view(-1, weight.shape[-1]) for tensor in (weight, gradient, mean, square)]
            half = (copies or {}).get(name)
            kernels_for(*rows).adam(
                *rows, lr=lr * (rates or {}).get(name, 1.0), step=self.count, factor=factor, unit=name in unit,
                half=None if half is None else half.view(-1, weight.shape[-1]), squares=(squares or {}).get(name),
            )  # fmt: skip


def _zeros_like(weight: Tensor) -> Tensor:
    return large_empty(tuple(weight.shape), weight.dtype, weight.device).zero_()
