"""Token positions by name, so that nodes of prompts with other tokens and lengths can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.prompt_record import OTHER, position_names
from mechstudy.core.errors import MechstudyError

ALL = "all"  # the position name that means every token


@dataclass(frozen=True)
class NamedPositions:
    """The position names of some prompts, which split the tokens of each: every token has one name.

    Where two names share a token, the first one counts. Tokens without a name are ``other``. The single name ``all``
    stands for every token.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Sequence[PromptPair]) -> NamedPositions:
        """Every name of the pairs from left to right, then ``other`` where some token has no name."""
        some_other = any(len(set(p.positions.values())) < len(p.clean_tokens) for p in pairs)
        return cls((*positions_left_to_right(pairs), *([OTHER] if some_other else [])))

    @classmethod
    def whole(cls) -> NamedPositions:
        """All tokens as one position."""
        return cls((ALL,))

    def numbers(self, pairs: Sequence[PromptPair]) -> Int[Tensor, "b t"]:
        """The number of every token's name in ``names``; the pairs' clean prompts have one length.

        Raises:
            MechstudyError: a token's name is not among ``names``.
        """
        length = len(pairs[0].clean_tokens)
        if self.names == (ALL,):
            return torch.zeros(len(pairs), length, dtype=torch.long)
        number = {name: i for i, name in enumerate(self.names)}
        rows = []
        for pair in pairs:
            names = position_names(pair.positions, length)
            if missing := [name for name in names if name not in number]:
                raise MechstudyError(
                    f"prompt {pair.id} has a position {missing[0]!r} that the nodes do not have",
                    facts={"positions": ", ".join(self.names)},
                    fix="take the nodes' positions from these prompts too",
                )
            rows.append([number[name] for name in names])
        return torch.tensor(rows)


def positions_left_to_right(pairs: Sequence[PromptPair]) -> list[str]:
    """All position names, from left to right by mean token index."""
    places: dict[str, list[float]] = {}
    for pair in pairs:
        for name, index in pair.positions.items():
            places.setdefault(name, []).append(index - len(pair.clean_tokens))
    return sorted(places, key=lambda name: (sum(places[name]) / len(places[name]), name))
