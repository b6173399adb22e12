"""Named variables of a residual stream, each in coordinates of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.core.errors import MechstudyError


class Variables:
    """Disjoint, named sets of coordinates: ``Variables(token=20, position=16, one=1)``."""

    def __init__(self, **widths: int) -> None:
        self.slices: dict[str, slice] = {}
        self.width = 0
        for name, width in widths.items():
            self.slices[name] = slice(self.width, self.width + width)
            self.width += width

    def rows(self, name: str, some: Sequence[int] | None = None) -> Float[Tensor, "n d"]:
        """Maps that read coordinates of a variable, by default all: rows of the identity.

        Raises:
            MechstudyError: there is no such variable.
        """
        if name not in self.slices:
            raise MechstudyError(f"there is no variable {name!r}", facts={"variables": ", ".join(self.slices)})
        own = torch.eye(self.width, dtype=torch.float64)[self.slices[name]]
        return own if some is None else own[list(some)]

    def sum_of(self, name: str, some: Sequence[int] | None = None) -> Float[Tensor, "1 d"]:
        """A map that reads the sum of coordinates of a variable."""
        return self.rows(name, some).sum(0, keepdim=True)

    def vector(self, values: Mapping[str, int | float]) -> Float[Tensor, " d"]:
        """A residual: coordinate ``i`` of a variable is 1 for a whole number i, a variable of width 1 has a value."""
        x = torch.zeros(self.width, dtype=torch.float64)
        for name, value in values.items():
            part = self.rows(name)
            x += part[value] if isinstance(value, int) else value * part[0]
        return x
