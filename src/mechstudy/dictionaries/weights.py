"""The weights of a dictionary in training, and gradients, which have the same shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Weights:
    """Weights in the normalised space. `enc` is W_enc transposed, so that both big matrices are rows by feature.

    enc [F, d_in], b_enc [F], dec [F, d_out], b_dec [d_out], skip [d_out, d_in] or None; extra: what an
    architecture has beyond these, [F] each. A cross-layer transcoder has dec [pairs, F / L, d_out / L] (`cross_layer`).
    """

    enc: Tensor
    b_enc: Tensor
    dec: Tensor
    b_dec: Tensor
    skip: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, in a fixed order."""
        for name in ("enc", "b_enc", "dec", "b_dec", "skip"):
            tensor = getattr(self, name)
            if tensor is not None:
                yield name, tensor
        yield from sorted(self.extra.items())

    def put(self, name: str, tensor: Tensor) -> None:
        """Replace a tensor by its name."""
        if name in self.extra:
            self.extra[name] = tensor
        else:
            setattr(self, name, tensor)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Weights:
        """From named tensors, as `named` gives them."""
        given = dict(tensors)
        fixed = {name: given.pop(name) for name in ("enc", "b_enc", "dec", "b_dec", "skip") if name in given}
        return cls(**fixed, extra=given)
