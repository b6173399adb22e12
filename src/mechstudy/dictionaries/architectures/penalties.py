"""Sparsity penalties phi(s) of s = activation x length of the decoder row, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_SMALL = 1e-4  # keeps the derivative of the square root finite
_TANH_SCALE = 4.0  # Anthropic, January 2025 update; activations have about unit variance here as there


class Penalty(NamedTuple):
    """phi(s) and phi'(s), elementwise."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


PENALTIES: Mapping[str, Penalty] = {
    "l1": Penalty(lambda s: s, torch.ones_like),
    "sqrt": Penalty(lambda s: (s + _SMALL).sqrt() - _SMALL**0.5, lambda s: 0.5 * (s + _SMALL).rsqrt()),
    "tanh": Penalty(
        lambda s: torch.tanh(_TANH_SCALE * s), lambda s: _TANH_SCALE * (1 - torch.tanh(_TANH_SCALE * s).square())
    ),
}
